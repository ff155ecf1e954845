"""Convolution of pictures (m, height, width, channels) as matrix products, forward and backward.

Two ways, one layer. A 3×3 convolution of stride 1 goes by minimal filtering: Winograd's F(4×4, 3×3)
makes a 4×4 block of outputs from a 6×6 tile d of the input with 36 products instead of 144,

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

(Winograd 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016;
points 0, ±1, ±2, ∞). Written for all tiles at once, with the tile's 36 places as the leading axis,
every step is a matrix product, because vec(Bᵀ d B) = (Bᵀ⊗Bᵀ) vec(d):

    V = (Bᵀ⊗Bᵀ) D          D (36, tiles·C_in): the overlapping tiles
    U = (G⊗G) W            W (9, C_in·C_out)
    M_k = V_k U_k          for the 36 places k: (tiles, C_in)·(C_in, C_out)
    Y = (Aᵀ⊗Aᵀ) M          (16, tiles·C_out): the 4×4 blocks

and the backward pass is the chain rule through the same products:

    dM = (A⊗A) dY,  dU_k = V_kᵀ dM_k,  dV_k = dM_k U_kᵀ,
    dW = (G⊗G)ᵀ dU,  dD = (Bᵀ⊗Bᵀ)ᵀ dV,  dx adds the overlapping tiles up.

Any other kernel or stride gathers each output's neighbourhood into a row (im2col) and multiplies.
"""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from model.network import Array, Gradients, Layer, Scratch, pieces

_B = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)  # Bᵀ
_G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_A = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)  # Aᵀ
_INPUT = np.kron(_B, _B)  # (36, 36)
_KERNEL = np.kron(_G, _G)  # (36, 9)
_OUTPUT = np.kron(_A, _A)  # (16, 36)

TILES = 128  # tiles a step handles at a time: enough for the products, few enough for the cache
NEIGHBOURHOODS = 4096  # rows of the gathered matrix a step handles at a time


class Convolution(Layer):
    """y[p] = Σ_q weights[q]·x[stride·p + q − kernel//2] + bias, zero outside the picture:
    x (m, h, w, C_in) → y (m, ⌈h/stride⌉, ⌈w/stride⌉, C_out).

    weights (kernel, kernel, C_in, C_out), kernel odd; bias (C_out,) or None, for use before a
    normalisation that would take it out again.
    """

    kind = "convolution"

    def __init__(self, weights: Array, bias: Array | None = None, stride: int = 1) -> None:
        super().__init__(weights=weights) if bias is None else super().__init__(
            weights=weights, bias=bias
        )
        self.kernel, self.stride = weights.shape[0], stride
        self.minimal = self.kernel == 3 and stride == 1
        self.prepare()

    def settings(self) -> dict[str, Any]:
        return {"stride": self.stride}

    def prepare(self) -> None:
        weights = self.parameters["weights"]
        if self.minimal:
            self._transformed = transform_weights(weights)

    def forward(self, x: Array, scratch: Scratch) -> Array:
        m, height, width, _ = x.shape
        channels = self.parameters["weights"].shape[-1]
        shape = (m, -(-height // self.stride), -(-width // self.stride), channels)
        y = scratch.array((id(self), "y"), shape, x.dtype)
        (self._forward_minimal if self.minimal else self._forward_gathered)(x, y, scratch)
        return y

    def backward(
        self, x: Array, y: Array, dy: Array, scratch: Scratch, input_gradient: bool
    ) -> tuple[Array, Gradients]:
        way = self._backward_minimal if self.minimal else self._backward_gathered
        dx, dw = way(x, dy, scratch, input_gradient)
        gradients = {"weights": dw}
        if "bias" in self.parameters:
            gradients["bias"] = dy.sum(axis=(0, 1, 2))
        return dx, gradients

    # --- 3×3, stride 1: minimal filtering ---------------------------------------------------

    def _forward_minimal(self, x: Array, y: Array, scratch: Scratch) -> None:
        for part in self._parts(x):
            v = self._transform_tiles(x[part], part, scratch)
            place, tiles, _ = v.shape
            c_out = y.shape[-1]
            products = scratch.array("products", (place, tiles, c_out), x.dtype)
            np.matmul(v, self._transformed, out=products)
            blocks = scratch.array("blocks", (16, tiles * c_out), x.dtype)
            np.matmul(_as(_OUTPUT, x), products.reshape(36, -1), out=blocks)
            _scatter_blocks(blocks, y[part])
            if "bias" in self.parameters:
                y[part] += self.parameters["bias"]

    def _transform_tiles(self, x: Array, part: slice, scratch: Scratch) -> Array:
        """V (36, tiles, C_in) of the pictures x; kept for the backward pass where one follows."""
        m, height, width, c_in = x.shape
        rows, columns = -(-height // 4), -(-width // 4)
        padded = scratch.array("padded", (m, 4 * rows + 2, 4 * columns + 2, c_in), x.dtype)
        padded[...] = 0
        padded[:, 1 : height + 1, 1 : width + 1] = x
        picture, row, column, channel = padded.strides
        tiles = as_strided(  # read only: the tiles overlap
            padded,
            (6, 6, m, rows, columns, c_in),
            (row, column, picture, 4 * row, 4 * column, channel),
            writeable=False,
        )
        gathered = scratch.array("tiles", tiles.shape, x.dtype)
        gathered[...] = tiles
        key = (id(self), "V", part.start) if scratch.keep else "V"
        v = scratch.array(key, (36, m * rows * columns, c_in), x.dtype)
        np.matmul(_as(_INPUT, x), gathered.reshape(36, -1), out=v.reshape(36, -1))
        return v

    def _backward_minimal(
        self, x: Array, dy: Array, scratch: Scratch, input_gradient: bool
    ) -> tuple[Array, Array]:
        c_in, c_out = self.parameters["weights"].shape[2:]
        du = scratch.array((id(self), "dU"), (36, c_in, c_out), x.dtype)
        dx = scratch.array((id(self), "dx"), x.shape, x.dtype)
        for part in self._parts(x):
            m, height, width, _ = x[part].shape
            rows, columns = -(-height // 4), -(-width // 4)
            tiles = m * rows * columns
            blocks = scratch.array("blocks", (16, tiles * c_out), x.dtype)
            _gather_blocks(dy[part], blocks)
            dproducts = scratch.array("products", (36, tiles, c_out), x.dtype)
            np.matmul(_as(_OUTPUT.T, x), blocks, out=dproducts.reshape(36, -1))
            v = scratch.array((id(self), "V", part.start), (36, tiles, c_in), x.dtype)
            if part.start == 0:
                np.matmul(v.transpose(0, 2, 1), dproducts, out=du)
            else:
                more = scratch.array("dU", du.shape, x.dtype)
                np.matmul(v.transpose(0, 2, 1), dproducts, out=more)
                du += more
            if input_gradient:
                dv = np.matmul(dproducts, self._transformed.transpose(0, 2, 1), out=v)
                dtiles = scratch.array("tiles", (6, 6, m, rows, columns, c_in), x.dtype)
                np.matmul(_as(_INPUT.T, x), dv.reshape(36, -1), out=dtiles.reshape(36, -1))
                dx[part] = _add_tiles(dtiles, scratch)[:, 1 : height + 1, 1 : width + 1]
        dw = _as(_KERNEL.T, x) @ du.reshape(36, -1)
        return dx, dw.reshape(3, 3, c_in, c_out)

    def _parts(self, x: Array) -> list[slice]:
        _, height, width, _ = x.shape
        return list(pieces(len(x), max(1, TILES // (-(-height // 4) * -(-width // 4)))))

    # --- any other kernel or stride: gathered neighbourhoods ---------------------------------

    def _forward_gathered(self, x: Array, y: Array, scratch: Scratch) -> None:
        weights = self.parameters["weights"]
        for part in self._gathered_parts(y):
            rows = self._gather(x[part], y[part].shape, scratch)
            np.matmul(rows, weights.reshape(rows.shape[1], -1), out=y[part].reshape(len(rows), -1))
            if "bias" in self.parameters:
                y[part] += self.parameters["bias"]

    def _gather(self, x: Array, shape: tuple[int, ...], scratch: Scratch) -> Array:
        """Each output's neighbourhood as a row (m·h·w, kernel·kernel·C_in)."""
        m, height, width, c_in = x.shape
        k, half = self.kernel, self.kernel // 2
        padded = scratch.array("padded", (m, height + k - 1, width + k - 1, c_in), x.dtype)
        padded[...] = 0
        padded[:, half : half + height, half : half + width] = x
        picture, row, column, channel = padded.strides
        view = as_strided(  # a window's row of k pixels is contiguous
            padded,
            (*shape[:3], k, k * c_in),
            (picture, self.stride * row, self.stride * column, row, channel),
            writeable=False,
        )
        rows = scratch.array("rows", view.shape, x.dtype)
        rows[...] = view
        return rows.reshape(-1, k * k * c_in)

    def _backward_gathered(
        self, x: Array, dy: Array, scratch: Scratch, input_gradient: bool
    ) -> tuple[Array, Array]:
        weights = self.parameters["weights"]
        k, half, c_in, c_out = self.kernel, self.kernel // 2, *weights.shape[2:]
        flat = weights.reshape(-1, c_out)
        dw = np.zeros_like(flat)
        _, height, width, _ = x.shape
        dx = scratch.array((id(self), "dx"), x.shape, x.dtype)
        for part in self._gathered_parts(dy):
            dout = dy[part].reshape(-1, c_out)
            rows = self._gather(x[part], dy[part].shape, scratch)  # cheaper than to keep it
            dw += rows.T @ dout
            if input_gradient:
                m, high, wide, _ = dy[part].shape
                drows = np.matmul(dout, flat.T, out=rows).reshape(m, high, wide, k, k, c_in)
                padded = scratch.array("padded", (m, height + k - 1, width + k - 1, c_in), x.dtype)
                padded[...] = 0
                for i in range(k):
                    for j in range(k):
                        s = self.stride
                        padded[:, i : i + s * high : s, j : j + s * wide : s] += drows[
                            :, :, :, i, j
                        ]
                dx[part] = padded[:, half : half + height, half : half + width]
        return dx, dw.reshape(weights.shape)

    def _gathered_parts(self, y: Array) -> list[slice]:
        _, height, width, _ = y.shape
        return list(pieces(len(y), max(1, NEIGHBOURHOODS // (height * width))))


def transform_weights(weights: Array) -> Array:
    """U = (G⊗G) W: weights (3, 3, C_in, C_out) → (36, C_in, C_out)."""
    _, _, c_in, c_out = weights.shape
    return (_as(_KERNEL, weights) @ weights.reshape(9, -1)).reshape(36, c_in, c_out)


def _as(matrix: Array, like: Array) -> Array:
    return matrix.astype(like.dtype)


def _block_view(blocks: Array, y: Array) -> tuple[Array, tuple[int, int]]:
    m, height, width, c = y.shape
    rows, columns = -(-height // 4), -(-width // 4)
    return blocks.reshape(4, 4, m, rows, columns, c).transpose(2, 3, 0, 4, 1, 5), (rows, columns)


def _scatter_blocks(blocks: Array, y: Array) -> None:
    """Blocks (16, tiles·C) to their places in y (m, h, w, C), what lies beyond its edge cut off."""
    m, height, width, c = y.shape
    view, (rows, columns) = _block_view(blocks, y)
    if height % 4 == 0 and width % 4 == 0:
        y.reshape(m, rows, 4, columns, 4, c)[...] = view
    else:
        y[...] = view.reshape(m, 4 * rows, 4 * columns, c)[:, :height, :width]


def _gather_blocks(dy: Array, blocks: Array) -> None:
    """The reverse of `_scatter_blocks`: zero beyond the edge."""
    m, height, width, c = dy.shape
    view, (rows, columns) = _block_view(blocks, dy)
    if height % 4 or width % 4:
        larger = np.zeros((m, 4 * rows, 4 * columns, c), dy.dtype)
        larger[:, :height, :width] = dy
        dy = larger
    view[...] = dy.reshape(m, rows, 4, columns, 4, c)


def _add_tiles(tiles: Array, scratch: Scratch) -> Array:
    """Overlapping tiles (6, 6, m, rows, columns, C) added up: (m, 4·rows + 2, 4·columns + 2, C)."""
    _, _, m, rows, columns, c = tiles.shape
    sums = scratch.array("padded", (m, 4 * rows + 2, 4 * columns + 2, c), tiles.dtype)
    sums[:, 4 * rows :] = 0
    sums[:, :, 4 * columns :] = 0
    body = sums[:, : 4 * rows, : 4 * columns]  # each place here is in exactly one tile's first 4×4
    picture, row, column, channel = sums.strides
    blocks = as_strided(
        body,
        (4, 4, m, rows, columns, c),
        (row, column, picture, 4 * row, 4 * column, channel),
    )
    blocks[...] = tiles[:4, :4]
    for i in range(6):
        for j in range(6):
            if i > 3 or j > 3:
                sums[:, i : i + 4 * rows - 3 : 4, j : j + 4 * columns - 3 : 4] += tiles[i, j]
    return sums
