"""Several processes of one job, as a launcher would start them, but forked from one that has imported torch."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from ddpm.distributed import joined


def together(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returns in each of `count` joined processes; the first error is raised here."""
    context: Any = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    if hasattr(os, "fork"):
        context.set_forkserver_preload(["ddpm.run", "ddpm.ops.fused", "sklearn.datasets", __name__])
    port = _free_port()
    pipes, children = [], []
    for rank in range(count):
        ours, theirs = context.Pipe()
        child = context.Process(target=_child, args=(rank, count, port, theirs, function, arguments), daemon=True)
        child.start()
        theirs.close()
        pipes.append(ours)
        children.append(child)
    try:
        return [_answer(pipe, rank) for rank, pipe in enumerate(pipes)]
    finally:
        for child in children:
            child.join(10)
            child.kill()


def _answer(pipe: Connection, rank: int) -> Any:
    assert pipe.poll(120), f"process {rank} is silent"
    value = pickle.loads(pipe.recv_bytes())
    if isinstance(value, BaseException):
        raise value
    return value


def _child(
    rank: int, count: int, port: int, pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        with joined(torch.device("cpu")):
            answer = function(*arguments)
    except BaseException as error:
        answer = error
    pipe.send_bytes(pickle.dumps(answer))  # tensors by value: sent as objects they would live as long as this process


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
