"""Clients of ``poseward serve`` in Python, one that waits and one for asyncio::

    from daemon.client import Client

    with Client() as poseward:
        job = poseward.submit("/videos/clip.mp4")
        for record in poseward.frames(job["id"]):
            print(record.frame, [track.id for track in record.tracks])

Both speak docs/protocol.md. Every request has a deadline; one that stays without an answer is sent again, which
is safe for all of them, until ``patience`` is spent: a restart of the daemon is only a pause.
"""

from daemon.client.aio import AsyncClient
from daemon.client.messages import ClientError, Page
from daemon.client.sync import Client

__all__ = ["AsyncClient", "Client", "ClientError", "Page"]
