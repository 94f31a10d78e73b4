"""What libcrossmodal.so tells about itself (csrc/introspection.cpp)."""

from typing import Any

def build_info() -> dict[str, Any]: ...
def cpu_isas() -> list[dict[str, Any]]: ...
def active_isa() -> str: ...
def select_isa(name: str) -> None: ...
def isa_environment_error() -> str | None: ...
def attention_plan(
    dtype: str,
    batch: int,
    num_heads: int,
    seqlen_q: int,
    seqlen_k: int,
    head_dim: int,
    head_dim_v: int | None = None,
    is_causal: bool = False,
) -> dict[str, Any]: ...
def cuda_attention_plan(
    dtype: str,
    batch: int,
    num_heads: int,
    num_heads_k: int,
    seqlen_q: int,
    seqlen_k: int,
    head_dim: int,
    head_dim_v: int,
    is_plain: bool,
    is_exact: bool,
    is_ragged: bool,
    allow_tf32: bool,
    arch: int,
    multiprocessors: int,
    shared_bytes: int,
    l2_bytes: int,
) -> dict[str, Any]: ...
def measure_peak(dtype: str) -> float: ...
def measure_bandwidth(num_bytes: int) -> float: ...
