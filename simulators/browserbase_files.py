"""The endpoints of Browserbase's files: recordings, what a browser downloads, what is uploaded, extensions."""

import io
import zipfile
from collections.abc import Callable, Mapping
from email import policy
from email.parser import BytesParser
from typing import Any

from simulators import browserbase_errors as errors
from simulators.browserbase_project import Project
from simulators.browserbase_state import Download, Extension, Session, shown
from simulators.browserbase_turn import CREATED, Call, Given, Handler, given

PLAYLIST_TYPE = "application/vnd.apple.mpegurl"
DOWNLOADS_LIMIT, DOWNLOADS_LIMIT_MAX = 20, 100
"""Of a page; both are guesses."""
SEGMENT_S = 10
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The date of every file in a ZIP: the format's first, so that the same files make the same bytes."""


class Files:
    """`link` makes a signed URL that anyone may fetch, of a content and its type."""

    def __init__(self, project: Project, link: Callable[[bytes, str], str]) -> None:
        self._project = project
        self._link = link
        self.routes: Mapping[str, Handler] = {
            "GET /sessions/{session}/recording": self._recording,
            "GET /sessions/{session}/replays": self._replays,
            "GET /sessions/{session}/replays/{page}": self._playlist,
            "GET /sessions/{session}/recording/downloads": self._movies,
            "POST /sessions/{session}/recording/downloads": self._make_movies,
            "GET /sessions/{session}/downloads": self._zip,
            "POST /sessions/{session}/uploads": self._upload,
            "GET /downloads": self._list_downloads,
            "GET /downloads/{download}": self._get_download,
            "DELETE /downloads/{download}": self._delete_download,
            "POST /extensions": self._create_extension,
            "GET /extensions/{extension}": lambda call: given(self._extension(call).as_json()),
            "DELETE /extensions/{extension}": self._delete_extension,
        }

    def _session(self, call: Call) -> Session:
        return self._project.session(call.ids["session"])

    # recordings

    def _recording(self, call: Call) -> Given:
        """Events of rrweb: the page, and what it looks like."""
        session = self._session(call)
        events: list[tuple[int, dict[str, Any]]] = [
            (4, {"href": "https://simulated.example", "width": 1280, "height": 720}),
            (2, {"node": {"type": 0, "id": 1, "childNodes": []}, "initialOffset": {"left": 0, "top": 0}}),
        ]
        at = {"sessionId": session.id, "timestamp": session.started_ms}
        return given([{**at, "type": kind, "data": data} for kind, data in events])

    def _replays(self, call: Call) -> Given:
        session = self._session(call)
        end_ms = (session.ended_ms or self._project.now_ms()) - session.started_ms
        page = {"pageId": "0", "url": f"/v1/sessions/{session.id}/replays/0", "startTimeMs": 0}
        return given({"pageCount": 1, "pages": [{**page, "endTimeMs": end_ms}]})

    def _playlist(self, call: Call) -> Given:
        session = self._session(call)
        if call.ids["page"] != "0":
            raise errors.not_found("Page", call.ids["page"])
        segment = self._link(f"segment of {session.id}".encode(), "video/mp4")
        lines = [
            "#EXTM3U",
            "#EXT-X-VERSION:7",
            f"#EXT-X-TARGETDURATION:{SEGMENT_S}",
            f"#EXTINF:{SEGMENT_S},",
            segment,
            "#EXT-X-ENDLIST",
        ]
        return Given("\n".join(lines).encode(), 200, PLAYLIST_TYPE)

    def _movies(self, call: Call) -> Given:
        """A signed address, anew each time."""
        session = self._session(call)
        movie: dict[str, Any] = {"pageId": "0", "status": "NOT_REQUESTED"}
        if session.has_mp4:
            movie |= {
                "status": "COMPLETED",
                "completedAt": shown(session.updated_ms),
                "downloadUrl": self._link(f"MP4 of {session.id}".encode(), "video/mp4"),
            }
        return given({"downloads": [movie]})

    def _make_movies(self, call: Call) -> Given:
        self._session(call).has_mp4 = True
        return self._movies(call)

    # what browsers download, and what is uploaded to them

    def _of(self, session: Session) -> list[Download]:
        return [each for each in self._project.downloads.values() if each.session_id == session.id]

    def _zip(self, call: Call) -> Given:
        """All that a session has downloaded; an empty archive, if nothing."""
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as files:
            for download in self._of(self._session(call)):
                files.writestr(zipfile.ZipInfo(download.filename, _EPOCH), download.content)
        return Given(archive.getvalue(), 200, "application/zip")

    def _list_downloads(self, call: Call) -> Given:
        session_id = call.request.query.get("sessionId")
        if not session_id:
            raise errors.invalid("querystring must have required property 'sessionId'")
        found = self._of(self._project.session(session_id))
        limit = call.integer("limit", DOWNLOADS_LIMIT, least=1, most=DOWNLOADS_LIMIT_MAX)
        offset = call.integer("offset", 0, least=0, most=1 << 31)
        page = [download.as_json() for download in found[offset : offset + limit]]
        return given({"downloads": page, "total": len(found), "limit": limit, "offset": offset})

    def _download(self, call: Call) -> Download:
        download = self._project.downloads.get(call.ids["download"])
        if download is None:
            raise errors.not_found("Download", call.ids["download"])
        return download

    def _get_download(self, call: Call) -> Given:
        """What is known of it for who accepts only JSON, else the file; that is a guess."""
        download = self._download(call)
        if call.request.header(b"accept").strip() == b"application/json":
            return given(download.as_json())
        return Given(download.content, 200, "application/octet-stream")

    def _delete_download(self, call: Call) -> Given:
        del self._project.downloads[self._download(call).id]
        return Given()

    def _upload(self, call: Call) -> Given:
        session = self._project.live_session(call.ids["session"])
        name, content = uploaded(call)
        session.uploads[name] = content
        return given({"message": "File uploaded successfully"})

    # extensions

    def _extension(self, call: Call) -> Extension:
        return self._project.extension(call.ids["extension"])

    def _create_extension(self, call: Call) -> Given:
        name, content = uploaded(call)
        extension = Extension(self._project.new_id(), name, content, self._project.now_ms())
        self._project.extensions[extension.id] = extension
        return given(extension.as_json(), CREATED)

    def _delete_extension(self, call: Call) -> Given:
        del self._project.extensions[self._extension(call).id]
        return Given()


def uploaded(call: Call) -> tuple[str, bytes]:
    """Name and content of the part `file` of a form (RFC 7578). Raises RefusedError."""
    content_type = call.request.header(b"content-type")
    message = BytesParser(policy=policy.HTTP).parsebytes(
        b"Content-Type: " + content_type + b"\r\n\r\n" + call.request.body
    )
    for part in message.iter_parts() if message.is_multipart() else ():
        if part.get_param("name", header="content-disposition") == "file":
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            return part.get_filename() or "file", content
    raise errors.invalid("body must have required property 'file'")
