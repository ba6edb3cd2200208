"""What commands ask of a vault about its restore points, mounted or not.

| request                                       | answer                               |
|-----------------------------------------------|--------------------------------------|
| ``{"do": "keep", "point": …, "name": …}``     | the point                            |
| ``{"do": "forget", "point": …}``              | the point                            |
| ``{"do": "policy", "set": {"daily": 7, …}}``  | the policy, and what it would keep   |
| ``{"do": "undelete", "path": …}``             | the newest point that has the path,  |
|                                               | and its folder in ``.cryptfs``       |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, Final, TypeAlias

from cryptfs.errors import CryptfsError, NewerFormat, UsageError
from cryptfs.upkeep.points import Points, RestorePoint
from cryptfs.upkeep.retention import Policy

POINT_REQUESTS: Final = frozenset({"keep", "forget", "policy", "undelete"})

Request: TypeAlias = Mapping[str, Any]
Answer: TypeAlias = dict[str, Any]


def answer_request(points: Points, request: Request, now_ns: int) -> Answer:
    """Does what is asked, in the open transaction. Raises UsageError, UnknownPoint."""
    match request.get("do"):
        case "keep":
            _refuse_read_only(request)
            point = points.find(str(request.get("point")), now_ns)
            points.keep(point, str(request.get("name")))
            return {"epoch": point.epoch, "name": points.pins()[point.epoch]}
        case "forget":
            _refuse_read_only(request)
            point = points.find(str(request.get("point")), now_ns)
            points.forget(point)
            return {"epoch": point.epoch, "name": point.name}
        case "policy":
            return _policy(points, request, now_ns)
        case "undelete":
            _refuse_read_only(request)
            return _undelete(points, request, now_ns)
        case other:
            raise CryptfsError(f"unknown request {other!r}")


def _refuse_read_only(request: Request) -> None:
    if request.get("read_only"):
        raise UsageError("the vault is mounted read-only; unmount it, or mount it for changes")


def _policy(points: Points, request: Request, now_ns: int) -> Answer:
    changes = request.get("set") or {}
    try:
        policy = points.policy()
    except NewerFormat:
        if len(changes) < len(fields(Policy)):
            raise
        policy = Policy()
    if changes:
        _refuse_read_only(request)
        policy = replace(policy, **changes)
        points.set_policy(policy)
    return {
        "policy": asdict(policy),
        "points": len(points.all()),
        "kept": len(points.kept(policy, now_ns)),
        "named": len(points.pins()),
    }


def _undelete(points: Points, request: Request, now_ns: int) -> Answer:
    path = os.fsencode(str(request.get("path")))
    at = request.get("point")
    for point in reversed(points.all()) if at is None else [points.find(str(at), now_ns)]:
        if points.holds(point, path):
            return _place(points, point)
    where = "no restore point" if at is None else f"restore point {at}"
    raise UsageError(
        f"{where} holds {os.fsdecode(path)!r}; the restore points are folders in .cryptfs, at the "
        "top of the mount, to look for it"
    )


def _place(points: Points, point: RestorePoint) -> Answer:
    (folder,) = [name for name, other in points.folders().items() if other.epoch == point.epoch]
    return {"epoch": point.epoch, "time_ns": point.time_ns, "folder": os.fsdecode(folder)}
