"""Bugs of the backward kernels for many queries."""

from tests.native.bugs.bug import Bug

BACKWARD = (
    Bug("delta of nothing", "attention_bwd_queries.h", "product_with_dout(out, row_of(r), d)", "0"),
    Bug(
        "delta is forgotten", "attention_bwd.h", "gradient[t][e] + row.dmass - row.delta", "gradient[t][e] + row.dmass"
    ),
    Bug(
        "mass sends nothing back",
        "attention_bwd.h",
        "gradient[t][e] + row.dmass - row.delta",
        "gradient[t][e] - row.delta",
        by="TRIO",
    ),
    Bug(
        "the slope of the cap is forgotten",
        "attention_bwd.h",
        "gradient[t][e] * slope[t][e]",
        "gradient[t][e]",
        by="OPTIONS",
    ),
    Bug("dropped weights receive gradients", "attention_bwd.h", "drop(gradient, dropped);", "", by="DROPOUT"),
    Bug(
        "dropout is not scaled in backward",
        "attention_bwd.h",
        "gradient[t][e] *= dropout.kept()",
        "gradient[t][e] *= 1",
        by="DROPOUT",
    ),
    Bug("dead queries take part", "attention_bwd.h", "if (sum == 0) return row;", "", by="EMPTY"),
    Bug(
        "dead rows are read",
        "attention_bwd.h",
        "return i >= queries.count || static_cast<const Acc*>(p.row_sum)[row_index(p, b, h, queries, i)] == 0;",
        "return i >= queries.count && static_cast<const Acc*>(p.row_sum)[row_index(p, b, h, queries, i)] == 0;",
    ),
    Bug(
        "lse sends nothing back",
        "attention_bwd_queries.h",
        "-static_cast<const Acc*>(p_.gradient.dlse)[at]",
        "Acc(0)",
        by="TRIO",
    ),
    Bug(
        "a sink's share has the wrong sign",
        "attention_bwd_queries.h",
        "-static_cast<double>(share)",
        "static_cast<double>(share)",
        by="OPTIONS",
    ),
    Bug(
        "a quarter of delta",
        "attention_bwd_queries.h",
        "sum_of_quad(weighted_[r].value)",
        "weighted_[r].value",
        within="const Acc sum = sum_of_quad(weighted_[r].value);",
    ),
    Bug(
        "NaN in a hidden key reaches dq",
        "attention_bwd_queries.h",
        "!kPlain || !band_.open",
        "false",
        by="NaN behind masks of 19 queries",
    ),
    Bug("dq is not scaled", "attention_bwd_queries.h", "dq_[n][2 * r] * scale", "dq_[n][2 * r]"),
    Bug(
        "padded queries keep their dq",
        "attention_bwd_queries.h",
        "static_cast<int>(p_.seqlen_q)",
        "queries_.count",
        within="queries_.count : static_cast<int>(p_.seqlen_q);\n const AttentionBackward& g",
    ),
    Bug(
        "row biases of the last source are lost",
        "attention_bwd_queries.h",
        "if (!for_delta && alive && !kPlain && chunk_ == 0) end_source();",
        "",
        by="BIASES",
    ),
    Bug("row biases mix sources", "attention_bwd_queries.h", "source_sum_[r] = 0;", "", by="BIASES"),
    Bug(
        "no barrier before rows are read",
        "block_pipeline.h",
        "__syncthreads();",
        "",
        within="__syncthreads();\n step(block",
    ),
    Bug(
        "key biases of a head reach the next",
        "attention_bwd_keys.h",
        "if (block.h != head) end_head(head);",
        "",
        by="MASKED",
    ),
    Bug(
        "no barrier before rows are replaced",
        "block_pipeline.h",
        "__syncthreads();",
        "",
        within="stage ^ 1 : 0);\n __syncthreads();",
    ),
    Bug(
        "heads begin behind the first query in reach",
        "attention_bwd_keys.h",
        "begin = first;",
        "begin = first + kBlockQ;",
        within="begin = first;\n ++h;",
    ),
    Bug("no exact delta", "attention_bwd_queries.h", "!kPlain && p_.exact_delta", "false", by="TRIO"),
    Bug(
        "one head of a group",
        "attention_bwd_keys.h",
        "p_.group[tile_.keys.source]",
        "1",
        within="first_head() + p_.group[tile_.keys.source]",
    ),
    Bug(
        "dropped weights reach dv",
        "attention_bwd_keys.h",
        "if constexpr (!kPlain) drop(w.weight, w.dropped);",
        "",
        by="DROPOUT",
    ),
    Bug("states of the other stage", "attention_bwd_keys.h", "states(stage)", "states(0)", within="= states(stage);"),
    Bug(
        "queries before the band are skipped",
        "attention_bwd_keys.h",
        "max(0, j_first - band_.last)",
        "max(0, j_first - band_.last + 4)",
        by="CAUSAL",
    ),
    Bug(
        "queries behind the band are skipped",
        "attention_bwd_keys.h",
        "j_last - band_.first + 1",
        "j_last - band_.first - 40",
    ),
    Bug("key biases of all heads in one", "attention_bwd_keys.h", "key_sum_[r] = 0;", "", by="MASKED"),
    Bug(
        "keys beyond the length are not written",
        "attention_bwd_keys.h",
        "static_cast<int>(source_.seqlen_k)",
        "rows_.count",
        within="rows_.count : static_cast<int>(source_.seqlen_k);",
    ),
    Bug(
        "rows before the first key are written",
        "attention_bwd_keys.h",
        "max(0, -(seen_.begin + warp_row_))",
        "0",
        by="DROPOUT",
    ),
    Bug(
        "keys of no sample keep their gradients",
        "attention_bwd_keys.h",
        "at.keys.begin <= 0 && at.chunk == 0",
        "false",
        by="PACKED",
    ),
    Bug(
        "shared biases of the first sample only",
        "attention_bwd_terms.h",
        "over_b ? static_cast<int>(p_.batch) : tile_.b + 1",
        "tile_.b + 1",
        by="TRIO",
    ),
    Bug(
        "no barrier between samples of a bias",
        "attention_bwd_terms.h",
        "__syncthreads();",
        "",
        within="wait_for_copies<0>();\n __syncthreads();",
        by="TRIO",
    ),
)

SHORT = (
    Bug(
        "no barrier between the passes",
        "attention_bwd_short.h",
        "__syncthreads();",
        "",
        within="__syncthreads();  // the tile has been read, and its delta is there",
    ),
    Bug(
        "no barrier between tiles of keys",
        "attention_bwd_short.h",
        "__syncthreads();",
        "",
        within="{s, begin, keys.block_m}}).run();\n __syncthreads();",
    ),
    Bug("the first block of queries only", "attention_bwd_short.h", "m_begin += queries.block_m", "m_begin += 1 << 20"),
    Bug(
        "keys of the first source only", "attention_bwd_short.h", "s < p.num_sources", "s < 1", "s < p.num_sources; ++s"
    ),
    Bug(
        "one query head of those that share keys",
        "attention_bwd_short.h",
        "h < (head + 1) * group",
        "h < head * group + 1",
    ),
    Bug(
        "keys cut from each source's first on", "attention_bwd_short.h", "keys_before_source(p, key_offset(p, s))", "0"
    ),
    Bug("plain kernels for all scores", "attention_bwd_short.h", "!scores_are_plain(p) || g.associate", "false"),
)
