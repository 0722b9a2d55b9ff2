"""Who may ask the router what, and who answers it: the table of the router's own pages and of the paths that are forwarded.

Promises: pure; a path that is in neither part of the table is no engine's to answer; what changes engines, their weights,
their requests or who they are needs the key for control, and so does what shows how an engine was started (SGLang's
``/server_info`` holds its key); whatever the table does not call a client's is control.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Access = Literal["open", "client", "control"]
# the router itself, one engine, all of them, or nobody
Answerer = Literal["router", "one", "every", "nobody"]

# forwarded for whoever may generate: it changes nothing that outlives the request
CLIENTS: frozenset[tuple[str, str]] = frozenset(
    {
        *((method, "/generate") for method in ("POST", "PUT")),
        *(("POST", f"/v1/{name}") for name in ("completions", "chat/completions", "embeddings", "score", "responses")),
        *(("POST", path) for path in ("/tokenize", "/detokenize", "/v1/tokenize", "/v1/detokenize")),
        *(("GET", path) for path in ("/v1/models", "/model_info", "/get_model_info", "/health_generate")),
        ("POST", "/abort_request"),  # of one request: all of them are for who controls (router/keys.py)
    }
)
# forwarded for who controls, by any method that is forwarded; what ends in a slash with all that is below it
_CONTROL = """
    /ready /ping /server_info /get_server_info /get_load /v1/loads
    /classify /encode /invocations /parse_function_call /separate_reasoning /v1/audio/transcriptions /v1/classify
    /v1/decisions /v1/messages /v1/messages/count_tokens /v1/models/ /v1/rerank /v1/responses/ /v1/systemone
    /flush_cache /pause_generation /continue_generation /open_session /close_session
    /begin_weight_update /end_weight_update /init_weights_update_group /destroy_weights_update_group
    /update_weights_from_distributed /update_weights_from_disk /update_weights_from_ipc /update_weights_from_tensor
    /update_weight_version /get_weights_by_name /weights_checker /release_memory_occupation /resume_memory_occupation
    /init_weights_send_group_for_remote_instance /send_weights_to_remote_instance
    /get_remote_instance_transfer_engine_info /remote_instance_transfer_engine_info
    /load_lora_adapter /load_lora_adapter_from_tensors /unload_lora_adapter
    /add_external_corpus /remove_external_corpus /list_external_corpora
    /hicache/storage-backend /hicache/storage-backend/clear /get_hicache_l3_cache_layout /pd_role_switch
    /set_internal_state /configure_logging /set_trace_level /slow_down /freeze_gc /dumper/ /start_profile /stop_profile
    /start_expert_distribution_record /stop_expert_distribution_record /dump_expert_distribution_record
"""
CONTROL = frozenset(_CONTROL.split())
# of these all engines are asked: what must reach the engine that has the request, or all of them
EVERY_ENGINE = frozenset(("/abort_request", "/flush_cache", "/pause_generation", "/continue_generation"))
_FORWARDED = {path for _, path in CLIENTS} | CONTROL


class Route(NamedTuple):
    """What a request has to bring, and who answers it."""

    needs: Access
    by: Answerer


class Routes:
    """The table of one router. The forwarded paths are in it; pages of its own come by :meth:`add`."""

    def __init__(self) -> None:
        self.own: dict[tuple[str, str], Access] = {}
        self._routes = {one: Route("client", "every" if one[1] in EVERY_ENGINE else "one") for one in CLIENTS}

    def add(self, method: str, path: str, needs: Access) -> None:
        """A page of the router, its path as FastAPI takes it. Raises ValueError: that path is forwarded."""
        if _forwarded(_fixed(path)):
            raise ValueError(f"{path} is forwarded to engines, and cannot be a page of the router as well")
        self.own[method, path] = self.own.get((method, path), needs)

    def find(self, method: str, path: str) -> Route:
        """What the table says of a request."""
        route = self._routes.get((method, path))
        return self._look_up(method, path) if route is None else route

    def _look_up(self, method: str, path: str) -> Route:
        found = [(how, known) for how, known in self.own if path == known or _below(path, known)]
        if found:
            exact = [known for how, known in found if how == method and known == path]
            fitting = exact or [known for how, known in found if how == method]
            return Route(self.own[method, fitting[0]] if fitting else "control", "router")
        if not _forwarded(path):
            return Route("control", "nobody")
        return Route("control", "every" if path in EVERY_ENGINE else "one")


def _fixed(path: str) -> str:
    """What of a page's path is the same for all that it stands for."""
    return path.partition("{")[0]


def _below(path: str, page: str) -> bool:
    return "{" in page and path.startswith(_fixed(page))


def _forwarded(path: str) -> bool:
    return path in _FORWARDED or any(path.startswith(known) for known in CONTROL if known.endswith("/"))
