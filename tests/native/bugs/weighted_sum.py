"""Bugs of the kernels of weighted sums."""

from tests.native.bugs.bug import Bug

WEIGHTED_SUM = (
    Bug(
        "hidden values are multiplied by zero",
        "weighted_sum.cu",
        "visible >> 8 * row & 1",
        "true",
    ),
    Bug("keys beyond the length are summed", "weighted_sum.cu", "p.lengths_count_m ? p.size_n : length", "p.size_n"),
    Bug(
        "keys beyond the length have a gradient",
        "weighted_sum.cu",
        "p.lengths_count_m ? length : p.size_m",
        "p.size_m",
    ),
    Bug(
        "the mask is forgotten",
        "weighted_sum.cu",
        "visible && p.mask != nullptr",
        "false",
        within="if (visible && p.mask != nullptr)\n visible = mask[m",
    ),
    Bug(
        "the mask is transposed",
        "weighted_sum.cu",
        "m * p.mask_stride[2] + n * p.mask_stride[3]",
        "n * p.mask_stride[2] + m * p.mask_stride[3]",
    ),
    Bug("the gradient's strides are those of forward", "weighted_sum.cu", "swapped ? 3 : 2", "2"),
    Bug(
        "no barrier before weights are read",
        "weighted_sum.cu",
        "__syncthreads();",
        "",
        within="__syncthreads();\n if (d < p.columns)",
    ),
    Bug(
        "no barrier before weights are replaced",
        "weighted_sum.cu",
        "__syncthreads();",
        "",
        within="__syncthreads();  // the tile of the previous round has been read",
    ),
    Bug("the first columns only", "weighted_sum.cu", "tile % tiles_d * kBlockD", "0"),
    Bug("products of the last columns only", "weighted_sum.cu", "sum += block_sum;", "sum = block_sum;"),
    Bug(
        "no barrier before products",
        "weighted_sum.cu",
        "__syncthreads();",
        "",
        within="__syncthreads();\n Acc block_sum",
    ),
    Bug(
        "no barrier before columns are replaced",
        "weighted_sum.cu",
        "__syncthreads();",
        "",
        within="__syncthreads();  // the columns of the previous round have been read",
    ),
    Bug(
        "hidden weights have a gradient",
        "weighted_sum.cu",
        "visible && p.mask != nullptr",
        "false",
        within="if (visible && p.mask != nullptr)\n visible = p.mask[b",
    ),
)
