"""How a failure looks to a client. Nothing heavy is imported: the proxy says it, too."""

from __future__ import annotations

__all__ = ["OPEN_INFERENCE", "failure_body"]

#: Where the Open Inference Protocol's paths begin.
OPEN_INFERENCE = "/v2"
_MAX_ID = 128


def failure_body(path: str, code: str, message: str, request_id: str) -> dict[str, str]:
    """A failure as JSON: {"code", "message", "request_id"}, or as the protocol of its path has it.

    Args:
        path: of the request.
        code: one word for programs.
        message: one line for people.
        request_id: shortened where it is too long.
    """
    if path == OPEN_INFERENCE or path.startswith(f"{OPEN_INFERENCE}/"):
        return {"error": message}
    return {"code": code, "message": message, "request_id": request_id[:_MAX_ID]}
