"""What a training step allocates on a CUDA GPU and not on a CPU, for a trace that runs on a CPU with fake tensors.

Two levels. Calls that take another way on CUDA take that way: attention, dropout, autocast's float32 operations, PEFT's
and bitsandbytes' own choices. Kernels that make tensors for themselves make them: those of bitsandbytes, and attention.
Each has its source: bitsandbytes 0.50.2 and transformers 5.17 as installed, PyTorch's repository in 2026.

Nothing of it was compared with a GPU yet; `benchmarks/memory_gpu.py` does that. Not modelled: lengths rounded up inside
attention (to 128 rows in flash's backward pass, to 8 columns in a mask), head sizes that are no multiple of 8, cuDNN's
attention (PyTorch may prefer it on compute capability 9 and 10; its scratch is its own), scratch of reductions, the
2 KiB of tables of the 8-bit optimizer, and the up to 1 MiB by which the allocator's blocks exceed what was asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final
from unittest import mock

import torch
from torch.autograd.graph import _engine_run_backward
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

MIB = 2**20
# Threads that multiply matrices, forward and backward: each has a cuBLAS handle of its own, each handle a workspace.
HANDLES = 2
# Columns of activations in which bitsandbytes finds outliers; up to 13 billion parameters at most 7 (Dettmers et al.
# 2022, LLM.int8(), table 4). Random weights have none.
OUTLIERS = 8
IN_REGISTERS = 128  # head size up to which memory-efficient attention needs no buffer in float32 for its output
SIXTEEN_BIT = (torch.float16, torch.bfloat16)
# torch/include/ATen/autocast_mode.h, AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE: what models call of it. On a CPU
# autocast leaves these in 16 bits.
IN_FLOAT32 = frozenset(
    {"layer_norm", "group_norm", "rms_norm", "exp", "log", "pow", "__pow__", "__rpow__", "reciprocal", "rsqrt"}
    | {"softplus", "logsumexp"}
)
TO_FLOAT32 = frozenset({"softmax", "log_softmax", "sum", "cumsum", "prod"})


def cublas_workspaces(capability: int) -> int:
    """Bytes of the workspaces that a training process holds for cuBLAS, taken from the caching allocator.

    32 MiB per handle and stream from Hopper on, `:4096:2:16:8` KiB before (PyTorch's CublasHandlePool.cpp,
    `parseChosenWorkspaceSize`; pull requests 83461 and 175344; on Blackwell some versions take the smaller one).
    cuBLASLt shares it. `torch.backends.cuda.cublas_workspace_size()` says it on the GPU itself.

    Args:
        capability: major compute capability of the GPU.
    """
    hopper = 9
    per_handle = 32 * MIB if capability >= hopper else 2 * 4 * MIB + 8 * 16 * 1024
    return HANDLES * per_handle


@contextlib.contextmanager
def cuda_calls(dtype: torch.dtype, *, int8: bool) -> Iterator[None]:
    """Let calls on CPU tensors go the way that they go on CUDA.

    Args:
        dtype: of activations; autocast is on where it has 16 bits.
        int8: the base is stored so; bitsandbytes is not imported for others.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(CudaCalls())
        if dtype in SIXTEEN_BIT:
            stack.enter_context(_autocast_said_to_be_on())
        if int8:
            from bitsandbytes.autograd import _functions

            # `matmul` trains with the first on a CPU and with the second on CUDA, where it warns at each call.
            stack.enter_context(mock.patch.object(_functions, "MatMul8bitFp", _functions.MatMul8bitLt))
            stack.enter_context(mock.patch.object(_functions.logger, "disabled", new=True))
        yield


@contextlib.contextmanager
def _autocast_said_to_be_on() -> Iterator[None]:
    """PEFT asks `torch.is_autocast_enabled()`, which means CUDA's, and leaves out a cast to float32 then."""
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)  # noqa: FBT003  # torch's signature
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before)


class CudaCalls(TorchFunctionMode):
    """Sends a few of torch's functions the way that they go on CUDA."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, or what CUDA runs in its place."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is torch.Tensor.backward:
            return self._backward(*args)
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is functional.dropout:
            return _dropout(*args, **kwargs)
        if torch.is_autocast_enabled("cpu"):
            if name in IN_FLOAT32:
                args, kwargs = tree_map_only(torch.Tensor, _in_float32, (args, kwargs))
            elif name in TO_FLOAT32 and args[0].dtype in SIXTEEN_BIT and kwargs.get("dtype") is None:
                kwargs = {**kwargs, "dtype": torch.float32}
        return func(*args, **kwargs)

    def _backward(self, loss: torch.Tensor) -> None:
        """With this mode on, which `Tensor.backward` is called without: checkpointing runs layers again in there."""
        keep_graph = create_graph = False
        ones = torch.ones_like(loss)
        with self:
            _engine_run_backward(
                (loss,), (ones,), keep_graph, create_graph, (), allow_unreachable=True, accumulate_grad=True
            )


def _in_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in SIXTEEN_BIT else tensor


def _dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """One kernel with a mask of a byte per element; a CPU keeps noise in the input's dtype (ATen's Dropout.cpp)."""
    if not training or not 0 < p < 1:
        return functional.dropout(x, p, training, inplace)
    dropped: torch.Tensor = torch.ops.aten.native_dropout(x, p, True)[0]  # noqa: FBT003  # torch's signature
    return dropped


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Flash in 16 bits without a mask, else memory-efficient, else the formula (ATen's sdp_utils.cpp).

    Args:
        query: [b, h, t, d].
        key: [b, g, s, d], g heads, which are h but for `enable_gqa`.
        value: as key.
        attn_mask: broadcasts to [b, h, t, s]; booleans become numbers of the query's dtype, which stay until backward.
        dropout_p: probability.
        is_causal: without a mask.
        scale: of the products.
        enable_gqa: keys have fewer heads.
    """
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    ops = torch.ops.aten
    out: torch.Tensor
    if attn_mask is None and query.dtype in SIXTEEN_BIT:
        out = ops._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]  # noqa: SLF001  # only the whole choice is public, and it goes by the device
        return out
    if attn_mask is not None:
        shape = (*query.shape[:3], key.shape[2])
        numbers = torch.where(attn_mask, 0.0, float("-inf")) if attn_mask.dtype == torch.bool else attn_mask
        attn_mask = numbers.to(query.dtype).expand(shape)
    if enable_gqa and key.shape[1] != query.shape[1]:
        out = ops._scaled_dot_product_attention_math(  # noqa: SLF001  # as above
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=True
        )[0]
        return out
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    out = ops._scaled_dot_product_efficient_attention(  # noqa: SLF001  # as above
        query, key, value, attn_mask, trained, dropout_p, is_causal, scale=scale
    )[0]
    return out


def _flash_backward(
    _grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, ...]:
    """`mha_bwd` of flash_api.cpp: dq is summed in float32; keys with fewer heads get gradients for all heads first."""
    b, h, t, d = query.shape
    grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    _softmax = query.new_empty(b, h, t, dtype=torch.float32)
    _accumulated = query.new_empty(b, t, h, -(-d // 32) * 32, dtype=torch.float32)
    _expanded = [query.new_empty(b, key.shape[2], h, d) for _ in range(2) if key.shape[1] != h]
    return grads


def _efficient(
    query: torch.Tensor,
    _key: torch.Tensor,
    value: torch.Tensor,
    _bias: torch.Tensor | None,
    compute_log_sumexp: bool,
    *_: Any,
    **__: Any,
) -> tuple[torch.Tensor, ...]:
    """`_efficient_attention_forward` of attention.cu; wide heads are summed outside of registers."""
    (b, h, t, _d), d = query.shape, value.shape[3]
    out = query.new_empty(b, t, h, d).transpose(1, 2)
    log_sum_exp = query.new_empty(b, h, t if compute_log_sumexp else 0, dtype=torch.float32)
    wide = d > IN_REGISTERS and query.dtype in SIXTEEN_BIT
    _accumulated = [query.new_empty(b, t, h, d, dtype=torch.float32) for _ in range(wide)]
    return out, log_sum_exp, query.new_empty((), dtype=torch.long), query.new_empty((), dtype=torch.long)


def _efficient_backward(
    _grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor | None, ...]:
    """`_efficient_attention_backward` of attention_backward.cu: dq, and of wide heads dk and dv, summed in float32."""
    b, h, t, d = query.shape
    grads = (
        query.new_empty(b, t, h, d).transpose(1, 2),
        key.new_empty(b, key.shape[2], h, d).transpose(1, 2),
        value.new_empty(b, key.shape[2], h, value.shape[3]).transpose(1, 2),
    )
    _delta = query.new_empty(b, h, t, dtype=torch.float32)
    summed = (query, key, value) if d > IN_REGISTERS else (query,)
    _workspace = [x.new_empty(x.shape, dtype=torch.float32) for x in summed if x.dtype in SIXTEEN_BIT]
    return *grads, None


def _gemm_4bit(
    x: torch.Tensor,
    _packed: torch.Tensor,
    shape: list[int],
    *_: Any,
    absmax_8bit: torch.Tensor | None = None,
    **__: Any,
) -> torch.Tensor:
    """`_dequant_linear_fallback` of bitsandbytes' backends/cuda/ops.py: the whole weight in the dtype of activations.

    With double quantization its scales in float32 twice. Taken above 1536 tokens in any case; below, a kernel that
    needs no copy is chosen by compute capability and shape, so there this may count too much.
    """
    quantized = [] if absmax_8bit is None else [absmax_8bit] * 2
    _scales = [scales.new_empty(scales.shape, dtype=torch.float32) for scales in quantized]
    _weight = x.new_empty(shape)
    return x.new_empty(*x.shape[:-1], shape[0])


def _int8_vectorwise_quant(
    x: torch.Tensor, threshold: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The op of that name in backends/cuda/ops.py; `x` is [rows, columns] in float16."""
    scales = x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)
    rows = x.new_empty(x.shape, dtype=torch.int8)
    if threshold <= 0:
        return rows, scales, None
    absolute = torch.empty_like(x)
    _outliers = x.new_empty(x.shape, dtype=torch.bool)
    del absolute
    return rows, scales, x.new_empty(OUTLIERS, dtype=torch.long)


def _int8_mixed_scaled_mm(
    x: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op of that name in backends/default/ops.py, with the product and its scaling in backends/cuda/ops.py.

    The product is int32, then float16, then what activations have; outliers are multiplied beside it and added.
    """
    outliers = x.new_empty(rows.shape[0], OUTLIERS)  # kept until backward
    _columns = x.new_empty(OUTLIERS, weight.shape[0])
    shape = (rows.shape[0], weight.shape[0])
    product = x.new_empty(shape, dtype=torch.int32)
    scaled = x.new_empty(shape, dtype=torch.float16)
    cast = scaled if x.dtype == torch.float16 else x.new_empty(shape)
    del product, scaled
    _without_outliers = cast
    return x.new_empty(shape), outliers


# Operation, as torch prints it, to a function that makes the tensors that its CUDA kernel makes, alive as long.
KERNELS: Final[dict[str, Callable[..., Any]]] = {
    "aten._scaled_dot_product_flash_attention_backward.default": _flash_backward,
    "aten._scaled_dot_product_efficient_attention.default": _efficient,
    "aten._scaled_dot_product_efficient_attention_backward.default": _efficient_backward,
    "bitsandbytes.gemm_4bit.default": _gemm_4bit,
    "bitsandbytes.int8_vectorwise_quant.default": _int8_vectorwise_quant,
    "bitsandbytes.int8_mixed_scaled_mm.default": _int8_mixed_scaled_mm,
}
