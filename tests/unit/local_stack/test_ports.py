from __future__ import annotations

import socket

import pytest

from local_stack.ports import LOCALHOST, free_port, port_in_use, require_free_port
from local_stack.processes import LocalStackError
from tests.ports import lasting_port


def test_a_free_port_can_be_bound() -> None:
    with socket.create_server((LOCALHOST, free_port())) as server:
        assert server.getsockname()[1] > 0


def test_a_port_is_in_use_while_somebody_listens_there() -> None:
    port = lasting_port()
    with socket.create_server((LOCALHOST, port)):
        assert port_in_use(LOCALHOST, port)
    assert not port_in_use(LOCALHOST, port)


def test_a_taken_port_is_a_sentence_with_the_port_its_purpose_and_the_setting() -> None:
    with socket.create_server((LOCALHOST, 0)) as server:
        port = server.getsockname()[1]
        expected = f"the scheduler needs port {port} on 127.0.0.1, but .* or set CARILLON_PORT to another port"
        with pytest.raises(LocalStackError, match=expected):
            require_free_port(port, "the scheduler", setting="CARILLON_PORT")


def test_a_free_port_is_not_complained_about() -> None:
    require_free_port(lasting_port(), "the scheduler")


def test_an_address_that_is_not_ours_is_not_taken_for_a_used_port() -> None:
    with pytest.raises(OSError, match=r"Cannot assign|Can't assign"):
        port_in_use("192.0.2.1", 7007)
