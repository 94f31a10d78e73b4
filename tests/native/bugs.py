"""Bugs that someone could write: each a change of one place in the kernels' source, all of which tests must notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """`file` of csrc/cuda with `right` replaced by `wrong`."""

    name: str
    file: str
    right: str
    wrong: str
    wide: bool = False  # shows where head_dim is more than a tile is wide


FORWARD = (
    Bug("keys end one too late", "visible_keys.h", "key < begin + count", "key <= begin + count"),
    Bug("keys begin before the first", "visible_keys.h", "key >= 0 && key", "key"),
    Bug("copies are not waited for", "attention_fwd.h", "wait_for_copies<1>();", "wait_for_copies<2>();"),
    Bug(
        "no barrier before a block is read",
        "attention_fwd.h",
        "      __syncthreads();\n      if (alive) step",
        "      if (alive) step",
    ),
    Bug(
        "no barrier before a stage is reused",
        "attention_fwd.h",
        "dropout, factor);\n      __syncthreads();",
        "dropout, factor);",
    ),
    Bug("a stage is loaded while it is read", "attention_fwd.h", "? stage ^ 1 : 0", "? stage : 0"),
    Bug("flags of keys are shared by stages", "attention_fwd.h", "+ mass) + stage * kBlockN;", "+ mass);"),
    Bug(
        "the output leaves before it is there",
        "attention_fwd.h",
        "    __syncwarp();\n    const int rows",
        "    const int rows",
    ),
    Bug("sums keep their old maximum", "attention_fwd.h", "o_[n][e] *= correction[e / 2];", "o_[n][e] *= 1;"),
    Bug(
        "rows of a correction swapped",
        "attention_fwd.h",
        "o_[n][e] *= correction[e / 2];",
        "o_[n][e] *= correction[e % 2];",
    ),
    Bug("a quarter of a row's sum", "attention_fwd.h", "sum_of_quad(softmax_.sum[r].value)", "softmax_.sum[r].value"),
    Bug(
        "mass keeps its old maximum",
        "attention_fwd.h",
        "share.sum * shift * total.inverse",
        "share.sum * total.inverse",
    ),
    Bug("mass of the last source is lost", "attention_fwd.h", "if (p_.mass && alive) end_source();", ""),
    Bug(
        "rows of no sample are not written", "attention_fwd.h", "if (!p.cu_seqlens_q || m_begin > 0", "if (m_begin >= 0"
    ),
    Bug("padded queries are not written", "attention_fwd.h", "static_cast<int>(p_.seqlen_q);", "queries_.count;"),
    Bug(
        "values of the first columns only",
        "attention_fwd.h",
        "first_column_(chunk * kWidth)",
        "first_column_(0)",
        wide=True,
    ),
    Bug("hidden rows are read", "tile.h", "wanted(row) ? min", "true ? min"),
    Bug("columns beyond the width are read", "tile.h", "max(0, from.width - column)", "Layout::kPerChunk"),
    Bug("panels overlap", "tile.h", "data + index * rows * kWidth", "data + index * kWidth", wide=True),
    Bug(
        "permuted when written, not when read",
        "engine.h",
        "x.chunk(row + lane % 16, column / 8 + lane / 16));\n    return a;",
        "x.data + (row + lane % 16) * kWidth + (column / 8 + lane / 16) * 8);\n    return a;",
    ),
    Bug(
        "keys of a pair swapped",
        "engine.h",
        "lane % 8 + lane / 16 * 8, column / 8 + lane / 8 % 2",
        "lane % 8 + lane / 8 % 2 * 8, column / 8 + lane / 16",
    ),
    Bug("values not transposed", "engine.h", "load_matrices_transposed(r, x", "load_matrices(r, x"),
    Bug(
        "weights of a pair swapped",
        "engine.h",
        "pack(T{}, left[2], left[3]), pack(T{}, right[0], right[1])",
        "pack(T{}, right[0], right[1]), pack(T{}, left[2], left[3])",
    ),
    Bug(
        "no guard where nothing is visible yet",
        "softmax.h",
        "largest == minus_infinity<Acc>() ? Acc(0) : largest",
        "largest",
    ),
    Bug(
        "maximum over half a row",
        "softmax.h",
        "      largest = larger(largest, __shfl_xor_sync(0xffffffffu, largest, 2));\n",
        "",
    ),
    Bug(
        "the sink is forgotten",
        "row_total.h",
        "const Acc total = sum + exp2_of((sink - top) * kFactor);",
        "const Acc total = sum;",
    ),
    Bug("causal sees one key more", "sample.h", "j > i + last", "j > i + last + 1"),
    Bug("the window's left side is off", "sample.h", "j < i + first", "j < i + first - 1"),
    Bug("lower_right as upper_left", "sample.h", "p.lower_right && !open", "false"),
    Bug("blocks begin late in a window", "visible_keys.h", "i_first + band.first))", "i_first + 8 + band.first))"),
    Bug(
        "lengths of the first source for all",
        "visible_keys.h",
        "end_ = key_rows_of(p_.source[source], b_)",
        "end_ = key_rows_of(p_.source[0], b_)",
    ),
    Bug(
        "key heads by remainder",
        "sample.h",
        "static_cast<int>(h) / p.group[source]",
        "static_cast<int>(h) % static_cast<int>(p.source[source].num_heads_k)",
    ),
    Bug(
        "a key mask does not keep rows from being read",
        "visible_keys.h",
        "if (source.num_terms == 0) return true;",
        "return true;",
    ),
    Bug("a bias is read along the wrong axis", "scores.h", "j * stride[3];", "j * stride[2];"),
    Bug("the cap has the scale of another", "tanh.h", "cap * far : cap * far", "far : far"),
    Bug(
        "dropout takes its neighbour's words",
        "dropout.h",
        "(lane & ~3) + e / 2 * 2 + column / 4",
        "(lane & ~3) + e / 2 * 2 + column / 2 % 2",
    ),
    Bug(
        "dropout counts keys from each source",
        "dropout.h",
        "key_offset(p, block.keys.source) + block.keys.begin",
        "block.keys.begin",
    ),
    Bug("dropout begins between words", "visible_keys.h", "p_.dropout_p > 0 ? position", "false ? position"),
    Bug("kept weights are not scaled up", "attention_fwd.h", "kept_ = dropout.kept();", "kept_ = 1;"),
)

BACKWARD = (
    Bug(
        "delta is forgotten", "attention_bwd.h", "gradient[t][e] + row.dmass - row.delta", "gradient[t][e] + row.dmass"
    ),
    Bug(
        "mass sends nothing back",
        "attention_bwd.h",
        "gradient[t][e] + row.dmass - row.delta",
        "gradient[t][e] - row.delta",
    ),
    Bug("the slope of the cap is forgotten", "attention_bwd.h", "gradient[t][e] * slope[t][e]", "gradient[t][e]"),
    Bug("dropped weights receive gradients", "attention_bwd.h", "drop(gradient, dropped);", ""),
    Bug(
        "dropout is not scaled in backward",
        "attention_bwd.h",
        "gradient[t][e] *= dropout.kept()",
        "gradient[t][e] *= 1",
    ),
    Bug("dead queries take part", "attention_bwd.h", "if (sum == 0) return row;", ""),
    Bug("dead rows are read", "attention_bwd.h", "return i >= queries.count ||", "return i >= queries.count &&"),
    Bug(
        "lse sends nothing back",
        "attention_bwd_queries.h",
        "rows_[r].delta = -static_cast",
        "rows_[r].delta = 0 * static_cast",
    ),
    Bug(
        "a sink's share has the wrong sign",
        "attention_bwd_queries.h",
        "return -static_cast<double>(share)",
        "return static_cast<double>(share)",
    ),
    Bug(
        "a quarter of delta",
        "attention_bwd_queries.h",
        "const Acc sum = sum_of_quad(weighted_[r].value);",
        "const Acc sum = weighted_[r].value;",
    ),
    Bug("NaN in a hidden key reaches dq", "attention_bwd_queries.h", "!kPlain || !band_.open", "false"),
    Bug(
        "dq is not scaled",
        "attention_bwd_queries.h",
        "none ? Acc(0) : dq_[n][2 * r] * scale",
        "none ? Acc(0) : dq_[n][2 * r]",
    ),
    Bug(
        "padded queries keep their dq",
        "attention_bwd_queries.h",
        "queries_.count : static_cast<int>(p_.seqlen_q);\n    const AttentionBackward& g",
        "queries_.count : queries_.count;\n    const AttentionBackward& g",
    ),
    Bug(
        "row biases of the last source are lost",
        "attention_bwd_queries.h",
        "if (!kDeltaOnly && alive && !kPlain && chunk_ == 0) end_source();",
        "",
    ),
    Bug("row biases mix sources", "attention_bwd_queries.h", "source_sum_[r] = 0;", ""),
    Bug(
        "no barrier before keys are read",
        "attention_bwd_queries.h",
        "__syncthreads();\n      if (alive) step",
        "if (alive) step",
    ),
    Bug(
        "no barrier before queries are read",
        "attention_bwd_keys.h",
        "__syncthreads();\n      step(block, stage);",
        "step(block, stage);",
    ),
    Bug(
        "no barrier before queries are replaced",
        "attention_bwd_keys.h",
        "end_head(block.h);\n      __syncthreads();",
        "end_head(block.h);",
    ),
    Bug(
        "one head of a group",
        "attention_bwd_keys.h",
        "first_head() + p_.group[tile_.keys.source]; }",
        "first_head() + 1; }",
    ),
    Bug("dropped weights reach dv", "attention_bwd_keys.h", "if constexpr (!kPlain) drop(w.weight, w.dropped);", ""),
    Bug(
        "states of the other stage",
        "attention_bwd_keys.h",
        "const RowState<Acc>* rows = states(stage);",
        "const RowState<Acc>* rows = states(0);",
    ),
    Bug(
        "queries before the band are skipped",
        "attention_bwd_keys.h",
        "max(0, j_first - band_.last)",
        "max(0, j_first - band_.last + 4)",
    ),
    Bug(
        "queries behind the band are skipped",
        "attention_bwd_keys.h",
        "j_last - band_.first + 1)",
        "j_last - band_.first - 40)",
    ),
    Bug("key biases of all heads in one", "attention_bwd_keys.h", "key_sum_[r] = 0;", ""),
    Bug(
        "keys beyond the length are not written",
        "attention_bwd_keys.h",
        "rows_.count : static_cast<int>(source_.seqlen_k);",
        "rows_.count : rows_.count;",
    ),
    Bug("rows before the first key are written", "attention_bwd_keys.h", "max(0, -(seen_.begin + warp_row_))", "0"),
    Bug(
        "keys of no sample keep their gradients",
        "attention_bwd_keys.h",
        "if (at.keys.begin <= 0 && at.chunk == 0)",
        "if (false)",
    ),
    Bug(
        "shared biases of the first sample only",
        "attention_bwd_terms.h",
        "over_b ? static_cast<int>(p_.batch) : tile_.b + 1",
        "tile_.b + 1",
    ),
    Bug(
        "no barrier between samples of a bias",
        "attention_bwd_terms.h",
        "wait_for_copies<0>();\n    __syncthreads();",
        "wait_for_copies<0>();",
    ),
)

SHORT = (
    Bug(
        "no barrier between the passes",
        "attention_bwd_short.h",
        "__syncthreads();  // the tile has been read, and its delta is there",
        "",
    ),
    Bug(
        "no barrier between tiles of keys",
        "attention_bwd_short.h",
        "{s, begin, keys.block_m}}).run();\n __syncthreads();",
        "{s, begin, keys.block_m}}).run();",
    ),
    Bug("the first block of queries only", "attention_bwd_short.h", "m_begin += queries.block_m", "m_begin += 1 << 20"),
    Bug("keys of the first source only", "attention_bwd_short.h", "s < p.num_sources; ++s", "s < 1; ++s"),
)
