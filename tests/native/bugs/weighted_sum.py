"""Bugs of the kernels of weighted sums."""

from tests.native.bugs.bug import Bug

WEIGHTED_SUM = (
    # -- sums of rows --
    Bug("keys beyond the length are summed", "row_sum.h", "p.hidden.lengths_count_m ? p.size_n : length", "p.size_n"),
    Bug(
        "keys beyond the length have a gradient",
        "row_sum.h",
        "p.hidden.lengths_count_m ? length : p.size_m",
        "p.size_m",
    ),
    Bug("hidden weights are multiplied", "row_sum.h", "tile.row(row)[shifts.at(row) + column] = T{};", "(void)tile;"),
    Bug(
        "hidden values are multiplied by zero",
        "row_sum.h",
        "!hidden_.sees(first_m_, block.begin + row)",
        "false",
        by="NaN in weighted sums, by key",
    ),
    Bug(
        "what is not finite is multiplied by zero",
        "row_sum.h",
        "drop_not_finite(*chunk)",
        "false",
        by="NaN in weighted sums",
    ),
    Bug(
        "NaN is lost where a mask differs by query",
        "row_sum.h",
        "some_are_not_finite() = true;",
        "",
        by="NaN that some queries see",
    ),
    Bug(
        "NaN reaches queries that do not see it",
        "row_sum.h",
        "first_m_ + m < end_m_ && hidden_.sees(first_m_ + m, block.begin + n)",
        "first_m_ + m < end_m_",
        by="NaN that some queries see",
    ),
    Bug(
        "no barrier after weights are hidden",
        "row_sum.h",
        "__syncthreads();",
        "",
        within="hide(block, stage, shifts);\n __syncthreads();",
    ),
    Bug(
        "sums that see nothing are not zero",
        "row_sum.h",
        "hidden_.differs_by_m_alone() && !hidden_.sees(m, 0)",
        "false",
    ),
    Bug("rows end before their step", "row_sum.h", "padded(block.count)", "block.count"),
    Bug("weights end before their step", "row_sum.h", "padded(rows_there)", "rows_there"),
    Bug(
        "no barrier of the warp before sums are stored",
        "row_sum.h",
        "__syncwarp();",
        "",
    ),
    Bug("the first columns only", "weighted_sum.cu", "chunk * RowSumTiling<typename E::Element>::kWidth", "0"),
    Bug("the gradient's strides are those of forward", "weighted_sum.cu", "swapped ? 3 : 2", "2"),
    # -- weights as they stand in memory --
    Bug("all rows begin where the first does", "weight_tile.h", "first + row * step", "first"),
    Bug(
        "weights beyond the last key",
        "weight_tile.h",
        "min(16, shift + left)",
        "16",
        by="NaN in weights beyond the length",
    ),
    Bug("neighbours that are none", "weight_tile.h", "column * column_stride", "column"),
    Bug("the mask is transposed", "pair_operands.h", "m * stride_m_ + n * stride_n_", "n * stride_m_ + m * stride_n_"),
    # -- products of rows --
    Bug(
        "left is loaded once",
        "row_products.h",
        "p_.panels > 1 || block.begin == first_n_",
        "block.panel == 0 && block.begin == first_n_",
    ),
    Bug(
        "products of the last columns only",
        "row_products.h",
        "if (block.panel == 0) clear(products);",
        "clear(products);",
    ),
    Bug("products of the first keys only", "weighted_sum.cu", "part * p.n_per_block", "0"),
    Bug(
        "no barrier of the warp before products are stored",
        "row_products.h",
        "__syncwarp();",
        "",
        within="__syncwarp();\n if (hidden_.exists()",
    ),
    Bug(
        "no barrier of the warp after products are hidden",
        "row_products.h",
        "__syncwarp();",
        "",
        within="hide_one(row, column);\n __syncwarp();",
    ),
    Bug(
        "weights beyond the length have a gradient",
        "row_products.h",
        "max(0, length_ - block.begin) + lane",
        "block.count",
        by="gradients of skipped weights",
    ),
    Bug(
        "hidden weights have a gradient",
        "row_products.h",
        "hidden_.exists()",
        "false",
        within="if (hidden_.exists()) for_each_hidden",
    ),
)
