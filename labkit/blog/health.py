"""Whether the application answers at all."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/")
async def health() -> dict[str, str]:
    """Answer at once, without asking any other part."""
    return {"status": "ok"}
