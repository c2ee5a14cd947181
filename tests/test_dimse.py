"""DIMSE without a peer: what is asked for, what an answer means, and why there is no connection."""

import socket
import threading

import pytest
from pydicom.dataset import Dataset

from slicewise.errors import UserError
from slicewise.io.dimse import DimsePeer, _identifiers, is_stored, message_id
from slicewise.io.peer import Address, Credentials, PeerSettings, Query, RemoteSeries


def test_a_series_is_asked_for_whole_or_by_lists_of_its_instances():
    series, uids = RemoteSeries("1.2", "1.2.3"), [f"1.2.3.{n}" for n in range(130)]
    (whole,) = _identifiers(series, uids, True)
    assert (whole.QueryRetrieveLevel, whole.SeriesInstanceUID) == ("SERIES", "1.2.3")
    assert "SOPInstanceUID" not in whole
    lists = _identifiers(series, uids, False)
    assert {part.QueryRetrieveLevel for part in lists} == {"IMAGE"}
    assert [len(part.SOPInstanceUID) for part in lists] == [64, 64, 2]
    assert [uid for part in lists for uid in part.SOPInstanceUID] == uids


def test_message_ids_stay_within_their_16_bits():
    assert [message_id(n) for n in (0, 1, 65534, 65535)] == [1, 2, 65535, 1]


def test_warnings_are_stored_and_failures_are_not():
    for code in (0x0000, 0x0001, 0x0107, 0x0116, 0xB000, 0xB006, 0xBFFF):
        assert is_stored(code), f"{code:04X}H"
    for code in (0x0117, 0x0122, 0x0124, 0xA700, 0xA900, 0xC000, 0xFE00):
        assert not is_stored(code), f"{code:04X}H"


@pytest.mark.parametrize(
    ("query", "levels"),
    [
        (Query(series="1.2.3"), ["SERIES"]),
        (Query(series="1.2.3", study="1.2"), ["STUDY", "SERIES"]),
        (Query(series="1.2.3", patient="P1"), ["STUDY", "SERIES"]),
        (Query(series="1.2.3", date="20260101"), ["STUDY", "SERIES"]),
        (Query(patient="P1"), ["STUDY", "SERIES"]),
    ],
)
def test_a_series_alone_is_asked_for_without_its_study(query, levels):
    """As a relational query (PS3.4 C.4.1.2.2): there is nothing to find its study by."""
    asked = []

    def answer(keys):
        asked.append(keys.QueryRetrieveLevel)
        row = Dataset()
        row.StudyInstanceUID, row.PatientID, row.SeriesInstanceUID, row.Modality = "1.2", "P1", "1.2.3", "CT"
        return [row]

    where = Address("dicom://PEER@localhost:104", "dicom", "localhost", 104, "PEER")
    peer = DimsePeer(where, PeerSettings(), Credentials())
    peer._asked = answer
    assert peer._matching(query) == [RemoteSeries("1.2", "1.2.3", "CT")]
    assert asked == levels


def test_a_port_without_tls_is_told_of():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet():
            plain, _ = server.accept()
            with plain:
                plain.recv(1024)
                plain.sendall(b"220 this is mail, not TLS\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        port = server.getsockname()[1]
        where = Address(f"dicoms://PEER@localhost:{port}", "dicoms", "127.0.0.1", port, "PEER")
        found = DimsePeer(where, PeerSettings(timeout_s=5), Credentials())._not_connected()
        thread.join()
    assert isinstance(found, UserError)
    assert "TLS failed" in str(found)
