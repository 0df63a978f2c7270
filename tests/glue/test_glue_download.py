"""Official files from a server on this machine: checksums, resumption, and nothing half."""

import functools
import hashlib
import http.server
import io
import json
import threading
import zipfile
from pathlib import Path

import pytest

from conftest import sample_rows
from rt_plugin.errors import UserError
from rt_plugin.glue import download as glue_download
from rt_plugin.glue.download import Source, download, read_sources
from rt_plugin.glue.prepare import main


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files`; remembers the ranges that were asked for; breaks off after `limit` bytes. A file that is a
    function sends itself."""

    def __init__(self, state, *args):
        self.state = state
        super().__init__(*args)

    def do_GET(self):
        content = self.state["files"].get(self.path)
        asked = self.headers.get("Range")
        self.state["asked"].append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.state["ranges"] else 0
        if content is None:
            return self.send_error(404)
        if callable(content):
            return content(self)
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        return self.wfile.write(content[start:][: self.state["limit"]])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    state = {"files": {}, "asked": [], "limit": None, "ranges": True}
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, state))
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    state["url"] = f"http://127.0.0.1:{httpd.server_port}"
    yield state
    httpd.shutdown()
    httpd.server_close()


def archive(method=zipfile.ZIP_STORED, **members) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as file:
        for name, text in members.items():
            file.writestr(name, text)
    return content.getvalue()


TRAIN = "".join("\t".join(row) + "\n" for row in sample_rows("train", 10))
QNLI = archive(
    **{
        "QNLI/original/train.tsv": "another version",
        "QNLI/train.tsv": TRAIN,
        "QNLI/dev.tsv": TRAIN,
        "QNLI/test.tsv": "index\tquestion\tsentence\n0\tWho?\tHe.\n",
        "../evil.tsv": "outside",
    }
)


def damaged(content: bytes, at: int) -> bytes:
    return content[:at] + bytes(20) + content[at + 20 :]


@pytest.fixture
def fetch(server, tmp_path):
    """Downloads QNLI into tmp_path/glue; returns the lines of progress."""
    server["files"]["/QNLI.zip"] = QNLI

    def run(sha256=None) -> str:
        lines = []
        source = Source(f"{server['url']}/QNLI.zip", sha256)
        download(["QNLI"], tmp_path / "glue", {"QNLI": source}, lines.append)
        return "\n".join(lines)

    return run


def endless(headers: dict[str, str], seen: list[int]):
    """A response without end: zeros, with whatever its headers promise; `seen` gets the sizes of what was sent."""

    def send(handler):
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        block = bytes(1 << 16)
        chunk = b"%x\r\n%s\r\n" % (len(block), block) if "Transfer-Encoding" in headers else block
        try:
            while True:
                handler.wfile.write(chunk)
                seen.append(len(block))
        except OSError:  # the other side has seen enough
            handler.close_connection = True

    return send


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


COMPLETE = {"QNLI/train.tsv", "QNLI/dev.tsv", "QNLI/test.tsv"}


def test_prepare_downloads_what_is_missing(server, tokenizer_folder, tmp_path, capsys):
    server["files"]["/QNLI.zip"] = QNLI
    (tmp_path / "urls.json").write_text(json.dumps({"QNLI": {"url": f"{server['url']}/QNLI.zip"}}))
    arguments = [tmp_path / "glue", tmp_path / "out", "--model", tokenizer_folder, "--tasks", "QNLI"]
    command = [str(a) for a in (*arguments, "--download", "--urls", tmp_path / "urls.json")]
    assert main(command) == 0
    assert (tmp_path / "glue/QNLI/train.tsv").read_text(encoding="utf-8") == TRAIN
    assert (tmp_path / "out" / "QNLI" / "glue.json").is_file()
    assert main(command) == 0
    assert len(server["asked"]) == 1  # the second time, all is there


@pytest.mark.parametrize(
    "content",
    [
        damaged(QNLI, QNLI.index(TRAIN.encode()) + 100),
        damaged(
            archive(zipfile.ZIP_DEFLATED, **{"QNLI/train.tsv": TRAIN, "QNLI/dev.tsv": "", "QNLI/test.tsv": ""}), 60
        ),
        damaged(QNLI, QNLI.index(b"PK\1\2")),
        QNLI[: QNLI.index(b"PK\5\6")],
    ],
    ids=["stored bytes", "deflated bytes", "table of contents", "cut off"],
)
def test_damaged_archive_is_named_and_the_next_one_is_welcome(server, tokenizer_folder, tmp_path, capsys, content):
    server["files"]["/QNLI.zip"] = content
    (tmp_path / "urls.json").write_text(json.dumps({"QNLI": {"url": f"{server['url']}/QNLI.zip"}}))
    arguments = [tmp_path / "glue", tmp_path / "out", "--model", tokenizer_folder, "--tasks", "QNLI"]
    command = [str(a) for a in (*arguments, "--download", "--urls", tmp_path / "urls.json")]
    assert main(command) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert (
        last.startswith(f"rt-plugin prepare-glue: error: {server['url']}/QNLI.zip: ")
        and "run the same command again" in last
    )
    assert listing(tmp_path / "glue") == set()
    server["files"]["/QNLI.zip"] = QNLI
    assert main(command) == 0
    assert json.loads((tmp_path / "glue" / "checksums.json").read_text()) == {
        f"{server['url']}/QNLI.zip": hashlib.sha256(QNLI).hexdigest()
    }


def test_checksum_is_recorded_and_then_expected(server, fetch, tmp_path):
    digest = hashlib.sha256(QNLI).hexdigest()
    assert f"SHA-256 {digest}: not known before" in fetch()
    assert listing(tmp_path / "glue") == {*COMPLETE, "checksums.json"}
    for path in (tmp_path / "glue" / "QNLI").iterdir():
        path.unlink()
    (tmp_path / "glue" / "QNLI").rmdir()
    server["files"]["/QNLI.zip"] = QNLI + b" "
    with pytest.raises(UserError, match=f"expected {digest}; it is another file"):
        fetch()
    assert listing(tmp_path / "glue") == {"checksums.json"}


def test_record_of_checksums_that_is_broken(fetch, tmp_path):
    (tmp_path / "glue").mkdir()
    (tmp_path / "glue" / "checksums.json").write_text('{"http')
    with pytest.raises(UserError, match=r"checksums.json: .*; expected the JSON that an earlier download wrote"):
        fetch()


def test_given_checksum(fetch, tmp_path):
    with pytest.raises(UserError, match="expected 00ff"):
        fetch("00ff")
    assert listing(tmp_path / "glue") == set()
    fetch(hashlib.sha256(QNLI).hexdigest().upper())
    assert listing(tmp_path / "glue") == COMPLETE


@pytest.mark.parametrize("ranges", [True, False])
def test_interrupted_download_goes_on(server, fetch, tmp_path, ranges):
    server.update(limit=1000, ranges=ranges)
    with pytest.raises(UserError, match=r"broke off after 1,000 of .* run the same command again"):
        fetch()
    assert listing(tmp_path / "glue") == {".QNLI-QNLI.zip.part"}
    server["limit"] = None
    fetch(hashlib.sha256(QNLI).hexdigest())
    assert server["asked"] == [None, "bytes=1000-"]
    assert listing(tmp_path / "glue") == COMPLETE


def test_stopped_after_the_last_byte(fetch, tmp_path):
    (tmp_path / "glue").mkdir()
    (tmp_path / "glue" / ".QNLI-QNLI.zip.part").write_bytes(QNLI)
    fetch(hashlib.sha256(QNLI).hexdigest())
    assert listing(tmp_path / "glue") == COMPLETE


def test_single_file(server, tmp_path):
    server["files"]["/AX.tsv"] = b"index\tsentence1\tsentence2\n"
    sources = {"AX": Source(f"{server['url']}/AX.tsv")}
    download(None, tmp_path, sources, lambda line: None)
    assert (tmp_path / "AX" / "diagnostic.tsv").read_bytes() == b"index\tsentence1\tsentence2\n"


class TestBadInput:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "the server answers 404"),
            (b"<html>moved</html>", "not a zip file"),
            (archive(**{"QNLI/train.tsv": "x"}), "no dev.tsv in it"),
        ],
        ids=["nothing", "a page", "another archive"],
    )
    def test_what_the_server_sends(self, server, fetch, tmp_path, content, message):
        server["files"]["/QNLI.zip"] = content
        with pytest.raises(UserError, match=message):
            fetch()
        assert listing(tmp_path / "glue") == set()

    def test_no_server(self, tmp_path):
        sources = {"QNLI": Source("http://127.0.0.1:1/QNLI.zip")}
        with pytest.raises(UserError, match="cannot be downloaded"):
            download(["QNLI"], tmp_path, sources, print)

    def test_task_without_an_address(self, tmp_path):
        with pytest.raises(UserError, match="MRPC: no address known"):
            download(["MRPC"], tmp_path, read_sources(None), print)

    def test_table_that_is_none(self, tmp_path):
        (tmp_path / "urls.json").write_text('{"QNLI": "http://here"}')
        with pytest.raises(UserError, match=r"urls.json: .* expected JSON"):
            read_sources(tmp_path / "urls.json")


class TestBombs:
    """What is larger than any of these files, or than it says: refused with a bounded use of the disk, and removed."""

    @pytest.fixture(autouse=True)
    def small_limit(self, monkeypatch):
        monkeypatch.setattr(glue_download, "MOST_RECEIVED", 1 << 20)

    @pytest.mark.parametrize(
        ("headers", "message"),
        [
            ({"Content-Length": "1073741824"}, "announces 1,073,741,824 bytes"),
            ({"Content-Length": "1000", "Transfer-Encoding": "chunked"}, "more than the 1,000 bytes that it announced"),
            ({"Transfer-Encoding": "chunked"}, "more than 1,048,576 bytes"),
            ({}, "more than 1,048,576 bytes"),
            ({"Content-Length": "-5"}, "more than"),
        ],
        ids=["announced", "more than announced", "chunks without end", "without end", "negative"],
    )
    def test_a_response_without_end(self, server, fetch, tmp_path, headers, message):
        seen = []
        server["files"]["/QNLI.zip"] = endless(headers, seen)
        with pytest.raises(UserError, match=r"/QNLI\.zip: .*refused") as caught:
            fetch()
        assert message in str(caught.value)
        assert listing(tmp_path / "glue") == set()
        assert sum(seen) < 1 << 26  # and not a gigabyte: what was received, and what the sockets hold

    def test_a_resumed_download_that_goes_on_and_on(self, server, fetch, tmp_path):
        server["limit"] = 100
        with pytest.raises(UserError, match="broke off"):
            fetch()
        server["files"]["/QNLI.zip"] = endless({"Transfer-Encoding": "chunked"}, [])
        with pytest.raises(UserError, match=r"more than 1,048,576 bytes.*refused"):
            fetch()
        assert listing(tmp_path / "glue") == set()

    def test_an_archive_that_unpacks_to_a_gigabyte(self, server, fetch, tmp_path, monkeypatch):
        monkeypatch.setattr(glue_download, "MOST_RECEIVED", 1 << 29)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
            with file.open("QNLI/train.tsv", "w") as member:
                for _ in range(1024):
                    member.write(bytes(1 << 20))
            for name in ("dev", "test"):
                file.writestr(f"QNLI/{name}.tsv", "")
        assert len(packed.getvalue()) < 1 << 23
        server["files"]["/QNLI.zip"] = packed.getvalue()
        monkeypatch.setattr(glue_download.shutil, "copyfileobj", lambda *_: pytest.fail("it is unpacked"))
        with pytest.raises(UserError, match=r"/QNLI\.zip: unpacks to 1,073,741,824 bytes.*refused"):
            fetch()
        assert listing(tmp_path / "glue") == set()

    def test_an_archive_that_lies_about_its_size(self, server, fetch, tmp_path):
        """1 MiB that says that it is 10 bytes: no more than these are unpacked."""
        rest = {"QNLI/dev.tsv": "", "QNLI/test.tsv": ""}
        content = bytearray(archive(zipfile.ZIP_DEFLATED, **{"QNLI/train.tsv": "x" * (1 << 20), **rest}))
        for header, place in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
            at = content.index(header) + place
            content[at : at + 4] = (10).to_bytes(4, "little")
        server["files"]["/QNLI.zip"] = bytes(content)
        with pytest.raises(UserError, match=r"/QNLI\.zip: not a zip file, or a damaged one"):
            fetch()
        assert listing(tmp_path / "glue") == set()
