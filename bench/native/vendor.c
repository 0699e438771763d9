/* The vendor of the benchmark: answers made beforehand, by path, as fast as one core can.

       vendor PORT_FILE ANSWERS_FILE COUNTS_FILE

   ANSWERS_FILE (bench/native.py writes it) holds routes: a line `path count`, then `count` pieces, each a line with its length
   and its bytes. The first piece begins with the answer's head. One piece is written at once. Several are written PACE_MS
   apart, each stamped where it has STAMP with the microseconds of CLOCK_MONOTONIC at its writing. Where a piece has ID_PLACE,
   32 digits stand that no answer had before.

   Of a request, its path is looked at and where it ends. On SIGTERM the numbers of connections and requests are written to
   COUNTS_FILE. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ROUTES_MAX = 64, PIECES_MAX = 256, FDS_MAX = 65536, HEAD_MAX = 65536, READ_BYTES = 1 << 18, PACE_US = 20000, EVENTS = 512 };
#define STAMP "0000000000000000"
#define ID_PLACE "5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e"
static const char NOT_FOUND[] = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";

struct piece { char *bytes; size_t length; bool has_ids; char *stamp; };
struct route { char path[256]; int count; struct piece pieces[PIECES_MAX]; };

struct connection {
    int fd;
    size_t body_left;           /* of a request whose head is read */
    const struct route *route;  /* of that request; NULL: none is under way */
    bool is_unknown;
    char *head;                 /* of the next request, as far as it came */
    size_t head_length;
    char *unsent;
    size_t unsent_length, unsent_at;
    int next_piece;             /* of a paced answer under way; 0: none */
    uint64_t due_us;
};

static struct route routes[ROUTES_MAX];
static int routes_count, poller;
static struct connection *connections[FDS_MAX];
static struct connection *heap[FDS_MAX];  /* paced ones, the soonest first */
static int heap_count;
static uint64_t ids, requests, accepted;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void *allocated(void *old, size_t size) {
    void *made = realloc(old, size);
    if (!made) fail("realloc");
    return made;
}

static uint64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* --- answers ----------------------------------------------------------------------------------------- */

static void load(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(path);
    while (routes_count < ROUTES_MAX) {
        struct route *route = &routes[routes_count];
        if (fscanf(file, "%255s %d", route->path, &route->count) != 2) break;
        if (route->count < 1 || route->count > PIECES_MAX) fail("number of pieces");
        for (int i = 0; i < route->count; i++) {
            struct piece *piece = &route->pieces[i];
            if (fscanf(file, "%zu", &piece->length) != 1 || fgetc(file) != '\n') fail("length of a piece");
            piece->bytes = allocated(NULL, piece->length + 1);
            if (fread(piece->bytes, 1, piece->length, file) != piece->length) fail("a piece");
            piece->bytes[piece->length] = 0;
            piece->has_ids = memmem(piece->bytes, piece->length, ID_PLACE, sizeof ID_PLACE - 1) != NULL;
            piece->stamp = memmem(piece->bytes, piece->length, STAMP, sizeof STAMP - 1);
        }
        routes_count++;
    }
    fclose(file);
}

static const struct route *route_of(const char *path, size_t length) {
    for (int i = 0; i < routes_count; i++)
        if (strlen(routes[i].path) == length && !memcmp(routes[i].path, path, length)) return &routes[i];
    return NULL;
}

/* --- writing ----------------------------------------------------------------------------------------- */

static void watch(struct connection *one, bool wants_to_write) {
    struct epoll_event event = {.events = EPOLLIN | (wants_to_write ? EPOLLOUT : 0), .data.ptr = one};
    epoll_ctl(poller, EPOLL_CTL_MOD, one->fd, &event);
}

/* False where the connection is broken. */
static bool put(struct connection *one, const char *bytes, size_t length) {
    size_t sent = 0;
    if (!one->unsent_length) {
        ssize_t now = send(one->fd, bytes, length, MSG_NOSIGNAL);
        if (now < 0 && errno != EAGAIN) return false;
        sent = now < 0 ? 0 : (size_t)now;
        if (sent == length) return true;
        watch(one, true);
    }
    one->unsent = allocated(one->unsent, one->unsent_length + length - sent);
    memcpy(one->unsent + one->unsent_length, bytes + sent, length - sent);
    one->unsent_length += length - sent;
    return true;
}

static bool put_rest(struct connection *one) {
    while (one->unsent_at < one->unsent_length) {
        ssize_t now = send(one->fd, one->unsent + one->unsent_at, one->unsent_length - one->unsent_at, MSG_NOSIGNAL);
        if (now < 0) return errno == EAGAIN;
        one->unsent_at += (size_t)now;
    }
    free(one->unsent);
    one->unsent = NULL;
    one->unsent_length = one->unsent_at = 0;
    watch(one, false);
    return true;
}

static bool put_piece(struct connection *one, const struct piece *piece) {
    if (piece->stamp) {
        char digits[17];
        snprintf(digits, sizeof digits, "%016llu", (unsigned long long)now_us());
        memcpy(piece->stamp, digits, 16);
    }
    if (!piece->has_ids) return put(one, piece->bytes, piece->length);
    char digits[33], *place = piece->bytes;
    snprintf(digits, sizeof digits, "%032llx", (unsigned long long)++ids);
    char *copy = allocated(NULL, piece->length);
    memcpy(copy, piece->bytes, piece->length);
    while ((place = memmem(place, piece->length - (place - piece->bytes), ID_PLACE, 32))) {
        memcpy(copy + (place - piece->bytes), digits, 32);
        place += 32;
    }
    bool is_fine = put(one, copy, piece->length);
    free(copy);
    return is_fine;
}

/* --- pacing: a heap by the next piece's time --------------------------------------------------------------- */

static void swap(int a, int b) {
    struct connection *kept = heap[a];
    heap[a] = heap[b];
    heap[b] = kept;
}

static void push(struct connection *one) {
    int at = heap_count++;
    heap[at] = one;
    while (at && heap[(at - 1) / 2]->due_us > heap[at]->due_us) {
        swap(at, (at - 1) / 2);
        at = (at - 1) / 2;
    }
}

static void sink(int at) {
    for (;;) {
        int least = at, left = 2 * at + 1;
        for (int child = left; child <= left + 1 && child < heap_count; child++)
            if (heap[child]->due_us < heap[least]->due_us) least = child;
        if (least == at) return;
        swap(at, least);
        at = least;
    }
}

static struct connection *pop(void) {
    struct connection *first = heap[0];
    heap[0] = heap[--heap_count];
    sink(0);
    return first;
}

static void drop_from_heap(struct connection *one) {
    for (int i = 0; i < heap_count; i++)
        if (heap[i] == one) {
            heap[i] = heap[--heap_count];
            for (int at = heap_count / 2; at >= 0; at--) sink(at);
            return;
        }
}

/* --- connections ----------------------------------------------------------------------------------------- */

static void close_connection(struct connection *one) {
    if (one->next_piece) drop_from_heap(one);
    connections[one->fd] = NULL;
    close(one->fd);
    free(one->head);
    free(one->unsent);
    free(one);
}

static bool answer(struct connection *one) {
    const struct route *route = one->route;
    one->route = NULL;
    requests++;
    if (!route) return put(one, NOT_FOUND, sizeof NOT_FOUND - 1);
    if (!put_piece(one, &route->pieces[0])) return false;
    if (route->count > 1) {
        one->route = route;
        one->next_piece = 1;
        one->due_us = now_us() + PACE_US;
        push(one);
    }
    return true;
}

static size_t length_of_body(const char *head, size_t length) {
    static const char NAME[] = "\r\ncontent-length:";
    for (const char *at = head; (at = memmem(at, length - (at - head), "\r\n", 2)); at += 2)
        if (length - (at - head) > sizeof NAME && !strncasecmp(at, NAME, sizeof NAME - 1)) return strtoull(at + sizeof NAME - 1, NULL, 10);
    return 0;
}

/* Take the bytes that came; false ends the connection. */
static bool take(struct connection *one, const char *bytes, size_t length) {
    while (length) {
        if (one->body_left) {
            size_t taken = length < one->body_left ? length : one->body_left;
            one->body_left -= taken;
            bytes += taken;
            length -= taken;
            if (!one->body_left && !answer(one)) return false;
            continue;
        }
        if (one->head_length + length > HEAD_MAX + READ_BYTES) return false;
        one->head = allocated(one->head, one->head_length + length + 1);
        memcpy(one->head + one->head_length, bytes, length);
        size_t seen = one->head_length + length;
        one->head[seen] = 0;
        char *end = memmem(one->head, seen, "\r\n\r\n", 4);
        if (!end) {
            one->head_length = seen;
            return seen <= HEAD_MAX;
        }
        size_t head = end + 4 - one->head;
        const char *path = memchr(one->head, ' ', head), *path_end = path ? memchr(path + 1, ' ', head - (path + 1 - one->head)) : NULL;
        if (!path_end) return false;
        one->route = route_of(path + 1, path_end - path - 1);
        one->body_left = length_of_body(one->head, head);
        bytes += head - one->head_length;
        length -= head - one->head_length;
        one->head_length = 0;
        if (!one->body_left && !answer(one)) return false;
    }
    return true;
}

static void read_from(struct connection *one) {
    static char buffer[READ_BYTES];
    ssize_t length = recv(one->fd, buffer, sizeof buffer, 0);
    if (length < 0 && errno == EAGAIN) return;
    if (length <= 0 || !take(one, buffer, (size_t)length)) close_connection(one);
}

static void accept_all(int listener) {
    int fd, yes = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= FDS_MAX) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        struct connection *one = allocated(NULL, sizeof *one);
        memset(one, 0, sizeof *one);
        one->fd = fd;
        connections[fd] = one;
        accepted++;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = one};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

static void write_what_is_due(void) {
    uint64_t now = now_us();
    while (heap_count && heap[0]->due_us <= now) {
        struct connection *one = pop();
        const struct route *route = one->route;
        int index = one->next_piece++;
        if (index + 1 == route->count) {
            one->next_piece = 0;
            one->route = NULL;
        } else {
            one->due_us += PACE_US;
            push(one);
        }
        if (!put_piece(one, &route->pieces[index])) close_connection(one);
    }
}

static int listen_on(const char *port_file) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, 2048)) fail("listen");
    getsockname(listener, (struct sockaddr *)&address, &length);
    FILE *file = fopen(port_file, "w");
    if (!file) fail(port_file);
    fprintf(file, "%d", ntohs(address.sin_port));
    fclose(file);
    return listener;
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    load(arguments[2]);
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    int told = signalfd(-1, &signals, SFD_NONBLOCK), listener = listen_on(arguments[1]);
    poller = epoll_create1(0);
    struct epoll_event of_listener = {.events = EPOLLIN, .data.ptr = &listener}, of_signal = {.events = EPOLLIN, .data.ptr = &told};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &of_listener);
    epoll_ctl(poller, EPOLL_CTL_ADD, told, &of_signal);
    for (;;) {
        struct epoll_event events[EVENTS];
        int wait_ms = -1;
        if (heap_count) {
            uint64_t now = now_us();
            wait_ms = heap[0]->due_us <= now ? 0 : (int)((heap[0]->due_us - now + 999) / 1000);
        }
        int ready = epoll_wait(poller, events, EVENTS, wait_ms);
        for (int i = 0; i < ready; i++) {
            void *what = events[i].data.ptr;
            if (what == &told) {
                FILE *file = fopen(arguments[3], "w");
                if (!file) fail(arguments[3]);
                fprintf(file, "%llu %llu\n", (unsigned long long)accepted, (unsigned long long)requests);
                fclose(file);
                return 0;
            }
            if (what == &listener) {
                accept_all(listener);
                continue;
            }
            struct connection *one = what;
            if ((events[i].events & EPOLLOUT) && !put_rest(one))
                close_connection(one);
            else if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                read_from(one);
        }
        write_what_is_due();
    }
}
