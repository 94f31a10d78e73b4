"""torch.nn.MultiheadAttention by the kernels of this library."""

from typing import Any

import torch
from torch import Tensor, nn

from crossmodal._validate import check_tensor
from crossmodal.nn._linear import linear
from crossmodal.nn._masks import attention_term, key_padding_term
from crossmodal.nn._padding import visible_rows, worth_skipping
from crossmodal.nn._ragged import nested_like, padded, ragged
from crossmodal.ops.associate import associate
from crossmodal.ops.attention import attention
from crossmodal.ops.fuse import fuse
from crossmodal.ops.varlen import attention_varlen
from crossmodal.types import Source


class MultiheadAttention(nn.MultiheadAttention):
    r"""Stands in the place of :class:`torch.nn.MultiheadAttention`: constructor, parameters, checkpoints, masks.

    .. math:: \mathrm{head}_h = \mathrm{softmax}(Q W^Q_h (K W^K_h)^\top / \sqrt{d}) \, V W^V_h, \quad
              y = [\mathrm{head}_1 \dots \mathrm{head}_H] \, W^O

    (Vaswani et al., 2017, section 3.2.2). Constructor and ``state_dict`` are those of torch's class, of which this is a
    subclass without state of its own. Where it differs from torch:

    - A query whose keys are all masked gets zero from the attention, hence the bias of ``out_proj``, where torch gives
      NaN; masked keys may hold NaN.
    - Nested tensors of either layout are taken in training too, and for key and value of other lengths than query.
    - The weights that ``need_weights`` asks for are those before dropout.
    - ``is_causal`` is taken at its word also beside ``key_padding_mask``: ``attn_mask`` is then not read, where no
      weights are asked for and no tokens are added.

    Args:
        embed_dim: features of query and output.
        num_heads: heads; embed_dim must be divisible by it.
        dropout: probability that a weight is dropped in training.
        bias: whether projections add a bias.
        add_bias_kv: adds one learned token to keys and values.
        add_zero_attn: adds one token of zeros to keys and values.
        kdim, vdim: features of key and value, embed_dim if None.
        batch_first: ``(batch, seqlen, features)`` instead of ``(seqlen, batch, features)``.
        device, dtype: of the parameters.

    Example:
        >>> attend = crossmodal.nn.MultiheadAttention(512, 8, batch_first=True)
        >>> text, image = torch.randn(2, 77, 512), torch.randn(2, 197, 512)
        >>> out, weights = attend(text, image, image)
        >>> out.shape, weights.shape
        (torch.Size([2, 77, 512]), torch.Size([2, 77, 197]))
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of ``query`` over ``key`` and ``value``.

        Args:
            query: ``(seqlen_q, batch, embed_dim)``, with ``batch_first`` ``(batch, seqlen_q, embed_dim)``, without a
                batch ``(seqlen_q, embed_dim)``, or nested ``(batch, j, embed_dim)``, jagged or strided.
            key: ``(seqlen_k, batch, kdim)`` or in query's other form.
            value: ``(seqlen_k, batch, vdim)`` or in query's other form.
            key_padding_mask: ``(batch, seqlen_k)``, without a batch ``(seqlen_k,)``; bool, True = ignore, or float,
                added to the scores.
            need_weights: also return the weights.
            attn_mask: ``(seqlen_q, seqlen_k)`` or ``(batch * num_heads, seqlen_q, seqlen_k)``; bool, True = ignore, or
                float, added to the scores.
            average_attn_weights: return the mean over heads of the weights.
            is_causal: a hint that ``attn_mask`` is the causal mask, which then is not read, where no weights are asked
                for and no tokens are added.

        Returns:
            The output, in query's form, and the weights or None: ``(batch, seqlen_q, seqlen_k)``, for each head
            ``(batch, num_heads, seqlen_q, seqlen_k)``, without a batch the same without ``batch``; tokens added by
            ``add_bias_kv`` and ``add_zero_attn`` follow the keys. For nested tensors both are padded with zeros.

        Raises:
            TypeError: for a mask that is neither bool nor floating point.
            ValueError: for shapes or devices that do not fit, naming the argument; for ``is_causal`` without
                ``attn_mask``; for masks, ``add_bias_kv`` or ``add_zero_attn`` beside nested tensors.
        """
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            check_tensor(name, tensor)
        if is_causal and attn_mask is None:
            raise ValueError("attn_mask must be given beside is_causal, which is a hint that attn_mask is causal")
        if query.is_nested or key.is_nested or value.is_nested:
            if key_padding_mask is not None or attn_mask is not None:
                name = "attn_mask" if key_padding_mask is None else "key_padding_mask"
                raise ValueError(f"{name} must be None beside nested tensors, whose samples have their own lengths")
            return self._nested(query, key, value, need_weights, average_attn_weights)

        batched = query.dim() == 3
        self._check_shapes(query, key, value, batched)
        if (
            batched
            and not need_weights
            and attn_mask is None
            and (self.bias_k is None and not self.add_zero_attn)
            and worth_skipping(key_padding_mask, query, key, self.batch_first)
        ):
            assert key_padding_mask is not None
            return self._without_padding(query, key, value, key_padding_mask), None
        q, k, v = (
            self._split_heads(t) if batched else self._split_heads(t.unsqueeze(0), batch_first=True)
            for t in self._project_in(query, key, value)
        )
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        batch, _, seqlen_q, _ = q.shape
        seqlen_k = k.shape[2]
        padding = key_padding_term(key_padding_mask, batch, seqlen_k, query)
        scores = attention_term(attn_mask, batch, self.num_heads, seqlen_q, seqlen_k, query)
        extra = self._extra_tokens(k, v)
        if need_weights or extra is not None:
            is_causal = False  # the mask says the same, of added tokens and of weights too
        elif is_causal:
            scores = None
        dropout_p = self.dropout if self.training else 0.0
        sources: list[Source | None] = [Source(k, v, mask=padding, bias=scores), *([] if extra is None else [extra])]
        if extra is None and (padding is None or scores is None):
            heads = attention(q, k, v, scores if padding is None else padding, dropout_p, is_causal)
            assert isinstance(heads, Tensor)
        else:
            heads = fuse(q, sources, dropout_p=dropout_p).out
        weights = _weights(q, sources, average_attn_weights) if need_weights else None
        merged = heads.transpose(1, 2).flatten(2)  # (batch, seqlen_q, embed_dim)
        if not batched:
            merged = merged.squeeze(0)
        elif not self.batch_first:
            merged = merged.transpose(0, 1).contiguous()
        if weights is not None and not batched:
            weights = weights.squeeze(0)
        return linear(merged, self.out_proj.weight, self.out_proj.bias), weights

    def _without_padding(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor) -> Tensor:
        """The output where ``key_padding_mask`` alone hides keys, which then are not even projected."""
        keys = visible_rows(key_padding_mask, self.batch_first)
        of_key = keys.rows_of(key)
        q, k, v = self._project_in(query, of_key, of_key if key is value else keys.rows_of(value))
        if not self.batch_first:
            q = q.transpose(0, 1)
        batch, seqlen_q, _ = q.shape
        q, k, v = (t.reshape(-1, self.num_heads, self.head_dim) for t in (q, k, v))
        ends = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * seqlen_q
        heads = attention_varlen(
            q,
            k,
            v,
            ends,
            keys.cu_seqlens,
            seqlen_q,
            keys.max_seqlen,
            self.dropout if self.training else 0.0,
        )
        assert isinstance(heads, Tensor)
        merged = heads.reshape(batch, seqlen_q, self.embed_dim)
        if not self.batch_first:
            merged = merged.transpose(0, 1).contiguous()
        return linear(merged, self.out_proj.weight, self.out_proj.bias)

    def _nested(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool, average_attn_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        if self.bias_k is not None or self.add_zero_attn:
            raise ValueError("query must be dense where add_bias_kv or add_zero_attn is set, got a nested tensor")
        of_query = ragged("query", query)
        of_key = of_query if key is query else ragged("key", key)
        of_value = of_key if value is key else ragged("value", value)
        q, k, v = (
            t.unflatten(-1, (self.num_heads, self.head_dim))
            for t in self._project_in(of_query.rows, of_key.rows, of_value.rows)
        )
        heads = attention_varlen(
            q,
            k,
            v,
            of_query.cu_seqlens,
            of_key.cu_seqlens,
            of_query.max_seqlen,
            of_key.max_seqlen,
            self.dropout if self.training else 0.0,
        )
        assert isinstance(heads, Tensor)
        out = nested_like(linear(heads.flatten(1), self.out_proj.weight, self.out_proj.bias), query)
        if not need_weights:
            return out, None
        lengths = {"query_lengths": of_query.cu_seqlens.diff(), "key_lengths": of_key.cu_seqlens.diff()}
        q, k = (padded(t, shape).transpose(1, 2) for t, shape in ((q, of_query), (k, of_key)))
        return out, _weights(q, k, average_attn_weights, **lengths)

    def _reset_parameters(self) -> None:
        self._qkv_same_embed_dim = self.in_proj_weight is not None
        super()._reset_parameters()
        # torch.nn.TransformerEncoderLayer asks this before it takes a fused path of its own, which would pass us by.
        self._qkv_same_embed_dim = False

    def _project_in(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values in the common space; one product for all that share their input."""
        width, bias = self.embed_dim, self.in_proj_bias
        if self.in_proj_weight is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            biases = (None,) * 3 if bias is None else bias.chunk(3)
            q, k, v = (linear(t, w, b) for t, w, b in zip((query, key, value), weights, biases, strict=True))
            return q, k, v
        weight = self.in_proj_weight
        if query is key and key is value:
            q, k, v = linear(query, weight, bias).unflatten(-1, (3, width)).unbind(-2)
            return q, k, v
        q = linear(query, weight[:width], None if bias is None else bias[:width])
        if key is value:
            k, v = (
                linear(key, weight[width:], None if bias is None else bias[width:]).unflatten(-1, (2, width)).unbind(-2)
            )
            return q, k, v
        k = linear(key, weight[width : 2 * width], None if bias is None else bias[width : 2 * width])
        return q, k, linear(value, weight[2 * width :], None if bias is None else bias[2 * width :])

    def _split_heads(self, tokens: Tensor, batch_first: bool | None = None) -> Tensor:
        """``(batch, num_heads, seqlen, head_dim)``, a view."""
        heads = tokens.unflatten(-1, (self.num_heads, self.head_dim))
        if self.batch_first if batch_first is None else batch_first:
            return heads.transpose(1, 2)
        return heads.permute(1, 2, 0, 3)

    def _extra_tokens(self, k: Tensor, v: Tensor) -> Source | None:
        """The tokens of ``add_bias_kv`` and ``add_zero_attn``, which every query sees."""
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for tokens, bias in ((keys, self.bias_k), (values, self.bias_v)):
            if bias is not None:
                tokens.append(bias.to(k.dtype).reshape(1, self.num_heads, 1, self.head_dim))
        if self.add_zero_attn:
            keys.append(k.new_zeros((1, self.num_heads, 1, self.head_dim)))
            values.append(v.new_zeros((1, self.num_heads, 1, self.head_dim)))
        if not keys:
            return None
        return Source(keys[0], values[0]) if len(keys) == 1 else Source(torch.cat(keys, 2), torch.cat(values, 2))

    def _check_shapes(self, query: Tensor, key: Tensor, value: Tensor, batched: bool) -> None:
        features = {"query": self.embed_dim, "key": self.kdim, "value": self.vdim}
        if query.dim() not in (2, 3):
            raise ValueError(
                f"query must have 3 dimensions, or 2 without a batch, got {query.dim()} (shape {tuple(query.shape)})"
            )
        for (name, width), tensor in zip(features.items(), (query, key, value), strict=True):
            if tensor.dim() != query.dim():
                raise ValueError(f"{name} must have query's {query.dim()} dimensions, got {tensor.dim()}")
            if tensor.shape[-1] != width:
                raise ValueError(f"{name} must have {width} features, got {tensor.shape[-1]}")
        if key.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                f"value must have key's batch and length {tuple(key.shape[:-1])}, got {tuple(value.shape[:-1])}"
            )
        of_batch = 0 if self.batch_first else 1
        if batched and query.shape[of_batch] != key.shape[of_batch]:
            raise ValueError(f"key must have query's batch {query.shape[of_batch]}, got {key.shape[of_batch]}")


def _weights(q: Tensor, key_or_sources: Tensor | list[Source | None], average: bool, **lengths: Any) -> Tensor:
    """``(batch, seqlen_q, keys)``, or one for each head, in the dtype that torch's module gives."""
    weights = associate(q, key_or_sources, reduce="heads" if average else None, **lengths)
    assert isinstance(weights, Tensor)
    return weights.to(q.dtype)
