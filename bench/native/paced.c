/* Many slow streams at once, from one process that is never the slowest.

       paced PORT REQUESTS_FILE STREAM_EVENTS CONNECTIONS SECONDS

   REQUESTS_FILE: each request a line with its length, and its bytes. Each connection asks for one stream after the other, the
   first ones begun evenly over a second; after SECONDS none is begun any more, and all must finish. An event has `: at `, and 16
   digits: the microseconds of CLOCK_MONOTONIC at which the vendor wrote it (vendor.c). Prints a line of JSON; what went wrong
   goes to standard error, with exit status 1. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { REQUESTS_MAX = 4096, CONNECTIONS_MAX = 16384, READ_BYTES = 1 << 16, KEPT_BYTES = 64, FINISHES_WITHIN_US = 30000000 };
static const char MARK[] = ": at ", END[] = "\r\n0\r\n\r\n", GOOD[] = "HTTP/1.1 200";

struct client {
    int fd, request, events;
    bool is_asking, has_head, is_done;
    uint64_t begins_us, began_us;
    char kept[KEPT_BYTES]; /* the end of what came before: a mark may be cut in two */
    int kept_length;
};

static struct { char *bytes; size_t length; } requests[REQUESTS_MAX];
static struct client clients[CONNECTIONS_MAX];
static int requests_count, clients_count, done_count, stream_events;
static uint64_t ends_us, finished;
static double *first_bytes, *lateness;
static size_t first_bytes_count, lateness_count;

static void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static uint64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void note(double **values, size_t *count, double value) {
    if (!(*count & (*count - 1))) { /* at powers of two */
        *values = realloc(*values, (*count ? 2 * *count : 1) * sizeof(double));
        if (!*values) fail("out of memory");
    }
    (*values)[(*count)++] = value;
}

static int by_size(const void *a, const void *b) {
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* The nearest rank, in ms. */
static double percentile(double *values, size_t count, double percent) {
    if (!count) fail("nothing was measured");
    qsort(values, count, sizeof *values, by_size);
    size_t rank = (size_t)((double)count * percent / 100);
    return values[rank < count ? rank : count - 1] / 1000;
}

static void load(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(path);
    size_t length;
    while (requests_count < REQUESTS_MAX && fscanf(file, "%zu", &length) == 1) {
        char *bytes = malloc(length);
        if (!bytes || fgetc(file) != '\n' || fread(bytes, 1, length, file) != length) fail("a request cannot be read");
        requests[requests_count].bytes = bytes;
        requests[requests_count++].length = length;
    }
    fclose(file);
    if (!requests_count) fail("no requests");
}

static void begin(struct client *one) {
    one->is_asking = true;
    one->has_head = false;
    one->events = one->kept_length = 0;
    one->began_us = now_us();
    const char *bytes = requests[one->request].bytes;
    size_t length = requests[one->request].length;
    /* A request is far smaller than a socket's buffer. */
    if (send(one->fd, bytes, length, MSG_NOSIGNAL) != (ssize_t)length) fail("a request could not be written at once");
}

static void end(struct client *one, uint64_t now) {
    if (one->events != stream_events) {
        fprintf(stderr, "a stream of %d events, expected %d\n", one->events, stream_events);
        exit(1);
    }
    finished++;
    one->is_asking = false;
    if (now < ends_us) {
        begin(one);
        return;
    }
    one->is_done = true;
    done_count++;
    close(one->fd);
}

static void read_from(struct client *one) {
    static char buffer[KEPT_BYTES + READ_BYTES + 1];
    memcpy(buffer, one->kept, one->kept_length);
    ssize_t came = recv(one->fd, buffer + one->kept_length, READ_BYTES, 0);
    uint64_t now = now_us();
    if (came < 0 && errno == EAGAIN) return;
    if (came <= 0 || !one->is_asking) fail("a connection was closed, or answered without being asked");
    size_t length = one->kept_length + (size_t)came, looked_at = 0;
    buffer[length] = 0;
    if (!one->has_head) {
        if (length < sizeof GOOD - 1 || memcmp(buffer, GOOD, sizeof GOOD - 1)) {
            fprintf(stderr, "answered: %.300s\n", buffer);
            exit(1);
        }
        one->has_head = true;
    }
    for (char *mark; (mark = memmem(buffer + looked_at, length - looked_at, MARK, sizeof MARK - 1));) {
        size_t digits = mark - buffer + sizeof MARK - 1;
        if (digits + 16 > length) {
            looked_at = mark - buffer;
            break;
        }
        if (!one->events++) note(&first_bytes, &first_bytes_count, (double)(now - one->began_us));
        note(&lateness, &lateness_count, (double)now - strtod(buffer + digits, NULL));
        looked_at = digits + 16;
    }
    if (length >= sizeof END - 1 && !memcmp(buffer + length - (sizeof END - 1), END, sizeof END - 1)) {
        end(one, now);
        return;
    }
    size_t kept = length - looked_at < KEPT_BYTES / 2 ? length - looked_at : KEPT_BYTES / 2;
    memcpy(one->kept, buffer + length - kept, kept);
    one->kept_length = (int)kept;
}

int main(int count, char **arguments) {
    if (count != 6) return 2;
    load(arguments[2]);
    stream_events = atoi(arguments[3]);
    clients_count = atoi(arguments[4]);
    double seconds = atof(arguments[5]);
    if (clients_count < 1 || clients_count > CONNECTIONS_MAX) return 2;
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(arguments[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int poller = epoll_create1(0), yes = 1, begun = 0;
    uint64_t start_us = now_us();
    for (int i = 0; i < clients_count; i++) {
        struct client *one = &clients[i];
        one->fd = socket(AF_INET, SOCK_STREAM, 0);
        one->request = i % requests_count;
        if (connect(one->fd, (struct sockaddr *)&address, sizeof address)) fail("cannot connect");
        setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = one};
        epoll_ctl(poller, EPOLL_CTL_ADD, one->fd, &event);
    }
    uint64_t first_us = now_us();
    for (int i = 0; i < clients_count; i++) clients[i].begins_us = first_us + (uint64_t)i * 1000000 / clients_count;
    ends_us = first_us + (uint64_t)(seconds * 1e6);
    while (done_count < clients_count) {
        uint64_t now = now_us();
        if (now > ends_us + FINISHES_WITHIN_US) {
            fprintf(
                stderr,
                "%d of %d clients did not finish within %d s; %llu streams did\n",
                clients_count - done_count,
                clients_count,
                (int)((ends_us - first_us + FINISHES_WITHIN_US) / 1000000),
                (unsigned long long)finished);
            return 1;
        }
        while (begun < clients_count && clients[begun].begins_us <= now) begin(&clients[begun++]);
        struct epoll_event events[512];
        int wait_ms = begun < clients_count ? (int)((clients[begun].begins_us - now + 999) / 1000) : 1000;
        int ready = epoll_wait(poller, events, 512, wait_ms);
        for (int i = 0; i < ready; i++) read_from(events[i].data.ptr);
    }
    printf(
        "{\"answers\": %llu, \"duration_s\": %.6f, \"first_byte_p50_ms\": %.3f, \"first_byte_p99_ms\": %.3f, "
        "\"lateness_p50_ms\": %.3f, \"lateness_p99_ms\": %.3f}\n",
        (unsigned long long)finished,
        (double)(now_us() - start_us) / 1e6,
        percentile(first_bytes, first_bytes_count, 50),
        percentile(first_bytes, first_bytes_count, 99),
        percentile(lateness, lateness_count, 50),
        percentile(lateness, lateness_count, 99));
}
