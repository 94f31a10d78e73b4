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
    Bug("copies are not waited for", "block_pipeline.h", "wait_for_copies<1>();", "wait_for_copies<2>();"),
    Bug("no barrier before a block is read", "block_pipeline.h", "__syncthreads();\n step(block", "step(block"),
    Bug(
        "no barrier before a stage is reused",
        "block_pipeline.h",
        "stage ^ 1 : 0);\n __syncthreads();",
        "stage ^ 1 : 0);",
    ),
    Bug("a stage is loaded while it is read", "block_pipeline.h", "stage ^= ahead)", "stage ^= 0)"),
    Bug("the last block is lost", "block_pipeline.h", "next.count > 0 || before.count > 0", "next.count > 0"),
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
    Bug(
        "a quarter of a row's sum",
        "attention_fwd.h",
        "sum_of_quad(softmax_.sum[r].value);\n      const bool exists",
        "softmax_.sum[r].value;\n      const bool exists",
    ),
    Bug(
        "mass keeps its old maximum",
        "attention_fwd.h",
        "nothing ? Acc(0) : mass.sum * shift",
        "nothing ? Acc(0) : mass.sum",
    ),
    Bug("mass of the last source is lost", "attention_fwd.h", "if (p_.mass && alive) end_source();", ""),
    Bug("rows of no sample are not written", "attention_fwd.h", "at.chunk == 0 && share == 0)", "at.chunk == 1)"),
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
        "if (!for_delta && alive && !kPlain && chunk_ == 0) end_source();",
        "",
    ),
    Bug("row biases mix sources", "attention_bwd_queries.h", "source_sum_[r] = 0;", ""),
    Bug("no barrier before rows are read", "block_pipeline.h", "__syncthreads();\n step(block", "step(block"),
    Bug("key biases of a head reach the next", "attention_bwd_keys.h", "if (block.h != head) end_head(head);", ""),
    Bug(
        "no barrier before rows are replaced",
        "block_pipeline.h",
        "stage ^ 1 : 0);\n __syncthreads();",
        "stage ^ 1 : 0);",
    ),
    Bug(
        "heads begin behind the first query in reach",
        "attention_bwd_keys.h",
        "begin = first;\n ++h;",
        "begin = first + kBlockQ;\n ++h;",
    ),
    Bug(
        "no exact delta",
        "attention_bwd_queries.h",
        "const bool is_exact = !kPlain && p_.exact_delta;",
        "const bool is_exact = false;",
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

FEW_FORWARD = (
    Bug("a key beyond the length", "attention_few_fwd.h", "there[u] = block.holds(j) &&", "there[u] ="),
    Bug(
        "columns beyond the width are read by few", "few_queries.h", "min(kPerChunk, from.width - column)", "kPerChunk"
    ),
    Bug("half of a row's product", "few_queries.h", "int d = t.lanes() / 2; d > 0", "int d = t.lanes() / 4; d > 0"),
    Bug("the maximum of one group", "few_queries.h", "d < 32; d *= 2) x = larger", "d < 16; d *= 2) x = larger"),
    Bug("the sum of half the groups", "few_queries.h", "d < 32; d *= 2)\n#pragma", "d < 16; d *= 2)\n#pragma"),
    Bug(
        "queries of the first head for all",
        "few_queries.h",
        "key_head * t.heads + row / seqlen_q",
        "key_head * t.heads",
    ),
    Bug("the band is forgotten", "few_queries.h", "(!band.open && band.hides(i[r], j))", "false"),
    Bug(
        "key heads by queries' heads",
        "few_queries.h",
        "key_head(p, source, key_head_ * t.heads)",
        "key_head_ * t.heads",
    ),
    Bug("earlier sums keep their maximum", "attention_few_fwd.h", "o_[r][e] * correction[r] + sum", "o_[r][e] + sum"),
    Bug("the first block loses its guard", "attention_few_fwd.h", "? Acc(0) : largest;", "? largest : largest;"),
    Bug("dropout is forgotten", "attention_few_fwd.h", "if (dropout.active()) drop(block", "if (false) drop(block"),
    Bug("dropout counts from each source", "attention_few_fwd.h", "offset = key_offset(p, block.source)", "offset = 0"),
    Bug("words of a Philox block swapped", "dropout.h", "(j & 2 ? high : low)", "(j & 2 ? low : high)"),
    Bug("mass of few: the last source", "attention_few_fwd.h", "if (p.mass) end_source();", ""),
    Bug("mass of few: sources run together", "attention_few_fwd.h", "source_sum_[r] = {};", ""),
    Bug("mass of few: not cleared", "attention_few_fwd.h", "if (p.mass) clear_mass();", ""),
    Bug(
        "no barrier before shares are put together",
        "attention_few_fwd.h",
        "leave_share();\n    __syncthreads();",
        "leave_share();",
    ),
    Bug(
        "shares of warps overlap", "attention_few_fwd.h", "(w * kRows + r) * row_share_size", "(w + r) * row_share_size"
    ),
    Bug(
        "each warp walks all keys",
        "attention_few_fwd.h",
        "share_ * kFewWarps + warp, shares_",
        "share_ * kFewWarps, shares_",
    ),
    Bug("blocks walk the same keys", "attention_few_fwd.h", "share_ * kFewWarps + warp, shares_", "warp, shares_"),
    Bug(
        "shares: the largest top is forgotten",
        "row_shares.h",
        "top = largest_of_lanes(is_there_ ? own.top() : minus_infinity<Acc>());",
        "top = own.top();",
    ),
    Bug("shares: values are not scaled", "row_shares.h", "share(n).value(column) * scale", "share(n).value(column)"),
    Bug("shares: sums are not scaled", "row_shares.h", "sum_of_lanes(own_sum * own_shrink)", "sum_of_lanes(own_sum)"),
    Bug("shares: mass is not scaled", "row_shares.h", "part.sum * shrink(part.top)", "part.sum"),
    Bug("shares: the last is lost", "row_shares.h", "n < count_; ++n)", "n + 1 < count_; ++n)"),
    Bug("merging forgets the dropped", "row_shares.h", "static_cast<Acc>(p.dropout_kept) : Acc(1)", "Acc(1) : Acc(1)"),
    Bug("merged rows of other heads", "merge_rows.cu", "h = pair % heads;", "h = 0;"),
)

FEW_BACKWARD = (
    Bug("a row of dK twice", "attention_few_bwd.h", "int next = share_.index * kFewWarps + warp;", "int next = warp;"),
    Bug("blocks of a source are left out", "attention_few_bwd.h", "next -= blocks;", "next -= blocks - 1;"),
    Bug(
        "keys beyond the length have no gradient",
        "attention_few_bwd.h",
        ": static_cast<int>(source.seqlen_k);\n const int block",
        ": rows.count;\n const int block",
    ),
    Bug(
        "keys beyond the length take part",
        "attention_few_bwd.h",
        "j < rows.count && block.holds(j) &&",
        "block.holds(j) &&",
    ),
    Bug("dead queries of few", "attention_few_bwd.h", "&& !is_dead<Acc>(p_, b, h[r], queries, i[r])", ""),
    Bug("few: delta is forgotten", "attention_few_bwd.h", "row.dmass - row.delta) * slope", "row.dmass) * slope"),
    Bug(
        "few: mass sends nothing back",
        "attention_few_bwd.h",
        "(gradient + row.dmass - row.delta)",
        "(gradient - row.delta)",
    ),
    Bug("few: mass is not in delta", "attention_few_bwd.h", "delta[0] += static_cast", "delta[0] += 0 * static_cast"),
    Bug("few: lse sends nothing back", "attention_few_bwd.h", "delta[0] -= static_cast", "delta[0] -= 0 * static_cast"),
    Bug(
        "few: mass of the first source for all",
        "attention_few_bwd.h",
        "* p_.num_sources + source];",
        "* p_.num_sources];",
    ),
    Bug("few: the slope of the cap", "attention_few_bwd.h", "- row.delta) * slope;", "- row.delta);"),
    Bug("few: dropped weights reach dv", "attention_few_bwd.h", "if (!drops) dv[e]", "dv[e]"),
    Bug(
        "few: dropped weights receive gradients",
        "attention_few_bwd.h",
        "drops ? Acc(0) : dp[r] * dropout.kept()",
        "dp[r] * dropout.kept()",
    ),
    Bug(
        "few: dropout is not scaled",
        "attention_few_bwd.h",
        "drops ? Acc(0) : dp[r] * dropout.kept()",
        "drops ? Acc(0) : dp[r]",
    ),
    Bug("few: dk is not scaled", "attention_few_bwd.h", "store(dk, static_cast<Acc>(p_.scale),", "store(dk, Acc(1),"),
    Bug("few: NaN behind a mask", "attention_few_bwd.h", "if (exponential == 0 || row.inverse == 0) continue;", ""),
    Bug("few: dq of one warp", "attention_few_bwd.h", "w < kFewWarps; ++w) sum +=", "w < 1; ++w) sum +="),
    Bug("few: dq of one group", "attention_few_bwd.h", "this->sum_over_groups(dq_[r]);", ""),
    Bug("few: no barrier before dq", "attention_few_bwd.h", "leave_dq();\n    __syncthreads();", "leave_dq();"),
    Bug(
        "few: shares of dq overwrite each other",
        "attention_few_bwd.h",
        "((share_.index * p_.batch + b)",
        "((0 * p_.batch + b)",
    ),
    Bug("few: dq of one share", "attention_few_bwd.h", "s < shares; ++s) sum +=", "s < 1; ++s) sum +="),
    Bug(
        "few: merged dq is not scaled",
        "attention_few_bwd.h",
        "rounded<T>(sum * static_cast<Acc>(p.scale))",
        "rounded<T>(sum)",
    ),
    Bug(
        "few: rows of no query", "attention_few_bwd.h", "clear_rows_of_no_query<E>(p, b, head * tiling.heads + h);", ";"
    ),
    Bug("few: rows of no key", "attention_few_bwd.h", "clear_rows_of_no_key<E>(p, p.source[s], b,", "(void)(b,"),
)

# Forward whose blocks share out the keys.
SHARED = (
    Bug("every share takes all keys", "attention_fwd.h", "kBlockN, {share_, shares_.count});", "kBlockN);"),
    Bug("others' blocks are not skipped", "visible_keys.h", "others_ = of_ - 1;", "others_ = 0;"),
    Bug("a source begins with a block too many", "visible_keys.h", "others_ -= left;", ""),
    Bug(
        "a quarter of a share's sum",
        "attention_fwd.h",
        "const Acc sum = sum_of_quad(softmax_.sum[r].value);\n      if (i",
        "const Acc sum = softmax_.sum[r].value;\n      if (i",
    ),
    Bug("mass of shares is left out", "attention_fwd.h", "share.set_mass(s, mass_of(row, s));", ";"),
    Bug(
        "columns of the first chunk for all shares",
        "attention_fwd.h",
        "const int column = first_column_ + n * 8",
        "const int column = n * 8",
    ),
    Bug("columns beyond the width are shared", "attention_fwd.h", "if (column < p_.head_dim_v) share", "share"),
    Bug(
        "the share's number is its tile's",
        "attention_fwd.h",
        "tiles.tile() / to_a_share)",
        "tiles.tile() % shares.count)",
    ),
)

QUEUED = (
    Bug("the queue begins late", "order_tiles.cu", "*queue.counter() = 0;", "*queue.counter() = 1;"),
    Bug("two samples in one place", "order_tiles.cu", "work[other] == own.work && other < entry", "false"),
    Bug("ends are not summed", "order_tiles.cu", "ends[entry] += before;", ""),
    Bug("no barrier before work is compared", "order_tiles.cu", "  __syncthreads();\n  int place", "  int place"),
    Bug(
        "no barrier within a sum",
        "order_tiles.cu",
        "__syncthreads();\n if (exists) ends[entry] += before;",
        "if (exists) ends[entry] += before;",
    ),
    Bug("a tile of the sample before", "tile_queue.h", "queue.ends()[middle] > tile", "queue.ends()[middle] >= tile"),
    Bug("no barrier before a number is drawn", "tile_queue.h", "if (!first_) __syncthreads();", ""),
    Bug(
        "no barrier behind a number",
        "tile_queue.h",
        "queue_.counter(), 1);\n      __syncthreads();",
        "queue_.counter(), 1);",
    ),
    Bug("every thread draws", "tile_queue.h", "if (threadIdx.x == 0) *slot_", "*slot_"),
    Bug(
        "samples without queries have no tile",
        "query_tiles.h",
        "return max(1, static_cast<int>(ceil_div(rows, tiling.block_m)));",
        "return static_cast<int>(ceil_div(rows, tiling.block_m));",
    ),
    Bug(
        "tiles of the longest sample for all",
        "query_tiles.h",
        "p.cu_seqlens_q ? query_rows(p, b).count : static_cast<int>(p.seqlen_q)",
        "query_rows(p, 0).count",
    ),
    Bug(
        "keys: samples without keys have no tile",
        "key_tiles.h",
        "return max(1, static_cast<int>(ceil_div(keys, block_m)));",
        "return static_cast<int>(ceil_div(keys, block_m));",
    ),
    Bug(
        "keys: sources mixed up",
        "key_tiles.h",
        "at.entry / batch, b = at.entry % batch;",
        "at.entry % p.num_sources, b = at.entry / p.num_sources;",
    ),
    Bug(
        "keys: tiles begin between words",
        "key_tiles.h",
        "* tiling.block_m - keys_before_source(p, offset);\n  return",
        "* tiling.block_m;\n  return",
    ),
)
