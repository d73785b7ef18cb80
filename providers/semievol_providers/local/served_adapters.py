"""Make finished adapters known to a vLLM server that runs elsewhere, by its runtime route.

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank 16

The server must see the adapter's folder. Knows nothing of jobs or of who asks the server.
"""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request

from semievol_api.errors import UserError

_WAIT_S = 120.0


class AdapterServer:
    """`tell` the server of an adapter, once; `url` is the server's base URL, with or without its /v1."""

    def __init__(self, url: str) -> None:
        self._url = f"{url.rstrip('/').removesuffix('/v1')}/v1/load_lora_adapter"
        self._told: set[str] = set()

    async def tell(self, name: str, folder: str) -> None:
        """The server answers to `name` with this adapter from now on.

        Raises:
            UserError: the server is not there, or takes no adapters while it runs.
        """
        if name not in self._told:
            await asyncio.to_thread(self._post, name, folder)
            self._told.add(name)

    def _post(self, name: str, folder: str) -> None:
        body = json.dumps({"lora_name": name, "lora_path": folder}).encode()
        asked = urllib.request.Request(self._url, body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=_WAIT_S):
                return
        except urllib.error.HTTPError as error:
            reason = error.read(2000).decode("utf-8", "replace").strip()
            if error.code == 400 and "already" in reason:
                return  # told by an earlier run
            said = f"it answered {error.code}: {reason or error.reason}"
        except OSError as error:
            said = f"it cannot be reached: {error}"
        raise UserError(
            f"The adapter {name!r} is trained and lies in {folder!r}, but the server at {self._url!r} does not serve "
            f"it: {said}. Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora, with a "
            "--max-lora-rank that holds the adapter's and the same folders, and run again; nothing is trained twice."
        )
