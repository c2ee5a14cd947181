"""Real systems to push to and pull from: Orthanc and dcmqrscp, in a network namespace of their own.

Both listen on all interfaces, whatever they are told; a namespace with nothing but a loopback interface keeps them to
themselves. The tests use the functions. As a program (root, Linux):

    python tests/peers.py [COMMAND...]

starts both, and runs COMMAND (a shell without one) where they can be reached.
"""

import asyncio
import ctypes
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WEB_PORT, DICOM_PORT, QR_PORT = 8042, 4242, 11112
# Where both send what C-MOVE asks for.
MOVE_TITLE, MOVE_PORT = "SLICEWISE", 11119
ORTHANC_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
CLONE_NEWNET = 0x40000000  # <linux/sched.h>


def missing() -> str:
    """Why the peers cannot run here; "" where they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a network namespace takes root on Linux"
    for program in ("Orthanc", "dcmqrscp", "storescu", "ip", "openssl"):
        if shutil.which(program) is None:
            return f"{program} is not installed (make tools)"
    if not ORTHANC_PLUGIN.is_file():
        return "orthanc-dicomweb is not installed (make tools)"
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        return "network namespaces are not allowed here"
    return ""


@contextmanager
def network_namespace() -> Iterator[None]:
    """Put this thread, and what it starts, into a new network namespace with a loopback interface; and back."""
    libc = ctypes.CDLL(None, use_errno=True)
    outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            libc.setns(outside, CLONE_NEWNET)
    finally:
        os.close(outside)


@dataclass
class Server:
    """A program that listens on ports; can be killed and started again over the same data."""

    command: list[str]
    ports: list[int]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        for port in self.ports:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if self.process.poll() is not None or time.monotonic() > deadline:
                        log_end = self.log.read_text()[-2000:]
                        raise RuntimeError(f"{self.command[0]} did not start:\n{log_end}") from None
                    time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL: no chance to tidy up."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def orthanc(
    folder: Path,
    web: int = WEB_PORT,
    dicom: int = DICOM_PORT,
    tls: Path | None = None,
    user: str = "",
    password: str = "",
) -> Iterator[Server]:
    """Orthanc with its DICOMweb plugin, its data in `folder`; for one HTTP user only where one is given; DICOM over
    TLS with `tls` / cert.pem and key.pem. HTTP is not: Debian's 1.10.1 dies of its first HTTPS request, and is put
    behind a TLS front in practice (`tls_front`)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "StorageDirectory": str(folder / "data"),
        "IndexDirectory": str(folder / "data"),
        "Plugins": [str(ORTHANC_PLUGIN)],
        "HttpPort": web,
        "DicomPort": dicom,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": True,
        "RemoteAccessAllowed": True,
        "AuthenticationEnabled": bool(user),
        "RegisteredUsers": {user: password} if user else {},
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "DicomModalities": {"slicewise": [MOVE_TITLE, "127.0.0.1", MOVE_PORT]},
        "SyncStorageArea": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    if tls:
        config |= {
            "DicomTlsEnabled": True,
            "DicomTlsCertificate": str(tls / "cert.pem"),
            "DicomTlsPrivateKey": str(tls / "key.pem"),
            "DicomTlsTrustedCertificates": str(tls / "cert.pem"),
            "DicomTlsRemoteCertificateRequired": False,
        }
    (folder / "orthanc.json").write_text(json.dumps(config))
    with _running(Server(["Orthanc", str(folder / "orthanc.json")], [web, dicom], folder / "log")) as server:
        yield server


@contextmanager
def dcmqrscp(folder: Path, port: int = QR_PORT) -> Iterator[Server]:
    """DCMTK's archive, title DCMQRSCP, its data in `folder`."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "dcmqrscp.cfg").write_text(f"""\
NetworkTCPPort = {port}
MaxPDUSize = 131072
MaxAssociations = 16
HostTable BEGIN
slicewise = ({MOVE_TITLE}, 127.0.0.1, {MOVE_PORT})
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
DCMQRSCP {folder / "data"} RW (200, 1024mb) ANY
AETable END
""")
    # +xt: takes JPEG-LS and keeps it so; of compressed files nothing else.
    command = ["dcmqrscp", "-c", str(folder / "dcmqrscp.cfg"), "+xt"]
    with _running(Server(command, [port], folder / "log")) as server:
        yield server


@contextmanager
def _running(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def tls_front(port: int, target: int, tls: Path) -> Iterator[None]:
    """What a reverse proxy does: takes TLS on `port` and passes what is in it to `target`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls / "cert.pem", tls / "key.pem")

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        except OSError:
            pass  # an end went away; so does the other
        finally:
            sink.close()

    async def serve(client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        server, request = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(copy(client, request), copy(server, answer))

    loop = asyncio.new_event_loop()
    loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", port, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def make_certificate(folder: Path) -> Path:
    """A self-signed certificate for localhost: cert.pem and key.pem."""
    folder.mkdir(parents=True, exist_ok=True)
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost".split()
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def main() -> int:
    """Run a command beside the peers."""
    if reason := missing():
        print(reason, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder, network_namespace():
        with orthanc(Path(folder, "orthanc")), dcmqrscp(Path(folder, "dcmqrscp")):
            print(f"http://127.0.0.1:{WEB_PORT}/dicom-web  dicom://ORTHANC@127.0.0.1:{DICOM_PORT}", file=sys.stderr)
            print(f"dicom://DCMQRSCP@127.0.0.1:{QR_PORT}", file=sys.stderr)
            return subprocess.run(sys.argv[1:] or [os.environ.get("SHELL", "sh")]).returncode


if __name__ == "__main__":
    sys.exit(main())
