"""Convolution of pictures (m, height, width, channels) as matrix products, forward and backward.

Two ways, one layer. A 3×3 convolution of stride 1 goes by minimal filtering: Winograd's F(4×4, 3×3)
makes a 4×4 block of outputs from a 6×6 tile d of the input with 36 products instead of 144,

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

(Winograd 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016;
points 0, ±1, ±2, ∞). With a tile's 36 places as an axis every step is a matrix product, because
vec(Bᵀ d B) = (Bᵀ⊗Bᵀ) vec(d):

    V_t = (Bᵀ⊗Bᵀ) D_t      for every tile t: (36, 36)·(36, C_in), the overlapping tiles
    U = (G⊗G) W            W (9, C_in·C_out)
    M_k = V_k U_k          for the 36 places k: (tiles, C_in)·(C_in, C_out)
    Y_t = (Aᵀ⊗Aᵀ) M_t      (16, 36)·(36, C_out): the 4×4 blocks

and the backward pass is the chain rule through the same products:

    dM = (A⊗A) dY,  dU_k = V_kᵀ dM_k,  dV_k = dM_k U_kᵀ,
    dW = (G⊗G)ᵀ dU,  dD = (Bᵀ⊗Bᵀ)ᵀ dV,  dx adds the overlapping tiles up.

The tiles are the outer axis in memory: small products stay in the innermost cache, and OpenBLAS
has kernels for them on processors with AVX-512 that need no repacking.

Any other convolution gathers each output's neighbourhood into a row (im2col) and multiplies; so
does one of a picture whose sides are not whole numbers of blocks.
"""

from functools import cache
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided

from model.network import Array, Derivatives, Layer, Scratch, pieces

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

TILES = 128  # tiles a step handles at a time: enough for the products, few enough for the cache
COLUMNS = 2048  # of the weights that a step transforms at a time
FEW_TILES = 8  # fewer than these are gathered
NEIGHBOURHOODS = 4096  # rows of the gathered matrix a step handles at a time


class Convolution(Layer, kind="convolution"):
    """y[p] = Σ_q weights[q]·x[stride·p + q − kernel//2] + bias, zero outside the picture:
    x (m, h, w, C_in) → y (m, ⌈h/stride⌉, ⌈w/stride⌉, C_out).

    weights (kernel, kernel, C_in, C_out), kernel odd; bias (C_out,) or None, for use before a
    normalisation that would take it out again.
    """

    def __init__(self, weights: Array, bias: Array | None = None, stride: int = 1) -> None:
        super().__init__({"weights": weights} | ({} if bias is None else {"bias": bias}))
        self.kernel, self.stride = weights.shape[0], stride
        self._transformed: Array | None = None

    def settings(self) -> dict[str, Any]:
        return {"stride": self.stride}

    def prepare(self) -> None:
        if self._transformed is not None:
            self._transformed = transform_weights(self.parameters["weights"], self._transformed)

    def _u(self) -> Array:
        """U, made when it is first needed: one picture at a time never needs the largest."""
        if self._transformed is None:
            self._transformed = transform_weights(self.parameters["weights"])
        return self._transformed

    def forward(self, x: Array, scratch: Scratch) -> Array:
        m, height, width, _ = x.shape
        channels = self.parameters["weights"].shape[-1]
        shape = (m, -(-height // self.stride), -(-width // self.stride), channels)
        y = scratch.array((id(self), "y"), shape, x.dtype)
        minimal = self._uses_winograd(x, scratch)
        (self._forward_winograd if minimal else self._forward_im2col)(x, y, scratch)
        return y

    def backward(self, x: Array, dy: Array, scratch: Scratch, input_gradient: bool) -> Derivatives:
        way = self._backward_winograd if self._uses_winograd(x, scratch) else self._backward_im2col
        dx, dw = way(x, dy, scratch, input_gradient)
        if not scratch.train:
            return dx, {}
        gradients = {"weights": dw}
        if "bias" in self.parameters:
            gradients["bias"] = dy.sum(axis=(0, 1, 2))
        return dx, gradients

    def _uses_winograd(self, x: Array, scratch: Scratch) -> bool:
        """Whether minimal filtering is possible and the faster way: it reads U, four times the
        weights, which pays where there are tiles enough to use it on."""
        m, height, width, _ = x.shape
        pays = m * height * width >= 16 * FEW_TILES or (scratch.keep and scratch.train)
        blocks = height % 4 == width % 4 == 0
        return self.kernel == 3 and self.stride == 1 and blocks and pays

    # --- 3×3, stride 1: minimal filtering ---------------------------------------------------

    def _forward_winograd(self, x: Array, y: Array, scratch: Scratch) -> None:
        u = self._u()
        for part in self._parts(x):
            v = self._transform_tiles(x[part], part, scratch)
            tiles, places, _ = v.shape
            c_out = y.shape[-1]
            products = scratch.array("products", (tiles, places, c_out), x.dtype)
            np.matmul(_by_place(v), u, out=_by_place(products))
            if "bias" in self.parameters:
                # The column of Aᵀ⊗Aᵀ for this place is all ones: it reaches all 16 outputs.
                products[:, 7] += self.parameters["bias"]
            blocks = scratch.array("blocks", (tiles, 16, c_out), x.dtype)
            np.matmul(_matrix("A", x.dtype), products, out=blocks)
            in_y = _blocks(y[part])
            in_y[...] = blocks.reshape(in_y.shape)

    def _transform_tiles(self, x: Array, part: slice, scratch: Scratch) -> Array:
        """V (tiles, 36, C_in) of the pictures x; kept for the backward pass where one follows."""
        m, height, width, c_in = x.shape
        rows, columns = height // 4, width // 4
        padded = _padded(x, 1, scratch)
        picture, row, column, channel = padded.strides
        tiles = as_strided(  # read only: the tiles overlap; a tile's row is contiguous
            padded,
            (m, rows, columns, 6, 6 * c_in),
            (picture, 4 * row, 4 * column, row, channel),
            writeable=False,
        )
        gathered = scratch.array("tiles", tiles.shape, x.dtype)
        gathered[...] = tiles
        key = (id(self), "V", part.start) if scratch.keep else "V"
        v = scratch.array(key, (m * rows * columns, 36, c_in), x.dtype)
        np.matmul(_matrix("B", x.dtype), gathered.reshape(v.shape), out=v)
        return v

    def _backward_winograd(
        self, x: Array, dy: Array, scratch: Scratch, input_gradient: bool
    ) -> tuple[Array, Array]:
        c_in, c_out = self.parameters["weights"].shape[2:]
        u = self._u()
        du = scratch.array((id(self), "dU"), (36, c_in, c_out), x.dtype)
        dx = scratch.array((id(self), "dx"), x.shape, x.dtype)
        for part in self._parts(x):
            in_dy = _blocks(dy[part])
            m, rows, columns, _, _ = in_dy.shape
            tiles = m * rows * columns
            blocks = scratch.array("blocks", (tiles, 16, c_out), x.dtype)
            blocks.reshape(in_dy.shape)[...] = in_dy
            dproducts = scratch.array("products", (tiles, 36, c_out), x.dtype)
            np.matmul(_matrix("A", x.dtype, transposed=True), blocks, out=dproducts)
            v = scratch.array((id(self), "V", part.start), (tiles, 36, c_in), x.dtype)
            more = du if part.start == 0 else scratch.array("dU", du.shape, x.dtype)
            np.matmul(v.transpose(1, 2, 0), _by_place(dproducts), out=more)
            if part.start:
                du += more
            if input_gradient:
                np.matmul(_by_place(dproducts), u.transpose(0, 2, 1), out=_by_place(v))
                dtiles = scratch.array("tiles", (m, rows, columns, 6, 6 * c_in), x.dtype)
                np.matmul(_matrix("B", x.dtype, transposed=True), v, out=dtiles.reshape(v.shape))
                dx[part] = _add_tiles(dtiles, scratch)[:, 1:-1, 1:-1]
        dw = _matrix("G", x.dtype, transposed=True) @ du.reshape(36, -1)
        return dx, dw.reshape(3, 3, c_in, c_out)

    def _parts(self, x: Array) -> list[slice]:
        _, height, width, _ = x.shape
        return list(pieces(len(x), max(1, 16 * TILES // (height * width))))

    # --- any other kernel or stride: gathered neighbourhoods ---------------------------------

    def _forward_im2col(self, x: Array, y: Array, scratch: Scratch) -> None:
        weights = self.parameters["weights"]
        for part in self._gathered_parts(y):
            rows = self._im2col(x[part], y[part].shape, scratch)
            np.matmul(rows, weights.reshape(rows.shape[1], -1), out=y[part].reshape(len(rows), -1))
            if "bias" in self.parameters:
                y[part] += self.parameters["bias"]

    def _im2col(self, x: Array, shape: tuple[int, ...], scratch: Scratch) -> Array:
        """Each output's neighbourhood as a row (m·h·w, kernel·kernel·C_in)."""
        k, c_in = self.kernel, x.shape[-1]
        padded = _padded(x, k // 2, scratch)
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

    def _backward_im2col(
        self, x: Array, dy: Array, scratch: Scratch, input_gradient: bool
    ) -> tuple[Array, Array]:
        weights = self.parameters["weights"]
        k, half, s, (c_in, c_out) = self.kernel, self.kernel // 2, self.stride, weights.shape[2:]
        flat = weights.reshape(-1, c_out)
        dw = np.zeros_like(flat)
        _, height, width, _ = x.shape
        dx = scratch.array((id(self), "dx"), x.shape, x.dtype)
        for part in self._gathered_parts(dy):
            dout = dy[part].reshape(-1, c_out)
            rows = self._im2col(x[part], dy[part].shape, scratch)  # cheaper than to keep it
            dw += rows.T @ dout
            if input_gradient:
                m, high, wide, _ = dy[part].shape
                drows = np.matmul(dout, flat.T, out=rows).reshape(m, high, wide, k, k, c_in)
                padded = scratch.array("padded", (m, height + k - 1, width + k - 1, c_in), x.dtype)
                padded[...] = 0
                for i, j in product(range(k), range(k)):
                    window = padded[:, i : i + s * high : s, j : j + s * wide : s]
                    window += drows[:, :, :, i, j]
                dx[part] = padded[:, half : half + height, half : half + width]
        return dx, dw.reshape(weights.shape)

    def _gathered_parts(self, y: Array) -> list[slice]:
        _, height, width, _ = y.shape
        return list(pieces(len(y), max(1, NEIGHBOURHOODS // (height * width))))


def transform_weights(weights: Array, out: Array | None = None) -> Array:
    """U = (G⊗G) W: weights (3, 3, C_in, C_out) → (36, C_in, C_out), into `out` if given."""
    _, _, c_in, c_out = weights.shape
    if out is None or out.dtype != weights.dtype:
        out = np.empty((36, c_in, c_out), weights.dtype)
    w, u = weights.reshape(9, -1), out.reshape(36, -1)
    for part in pieces(w.shape[1], COLUMNS):
        np.matmul(_matrix("G", weights.dtype), w[:, part], out=u[:, part])
    return out


@cache
def _matrix(
    name: Literal["B", "G", "A"], dtype: np.dtype[Any], *, transposed: bool = False
) -> Array:
    """Bᵀ⊗Bᵀ (36, 36), G⊗G (36, 9) or Aᵀ⊗Aᵀ (16, 36)."""
    single = {"B": _B, "G": _G, "A": _A}[name]
    matrix = np.kron(single, single)
    return np.ascontiguousarray(matrix.T if transposed else matrix, dtype)


def _by_place(tiles: Array) -> Array:
    """(tiles, 36, C) seen as (36, tiles, C), which products take without a copy."""
    return tiles.transpose(1, 0, 2)


def _padded(x: Array, margin: int, scratch: Scratch) -> Array:
    """x (m, h, w, C) with that many zeros on each side."""
    m, height, width, c = x.shape
    bottom, right = margin + height, margin + width
    padded = scratch.array("padded", (m, bottom + margin, right + margin, c), x.dtype)
    padded[:, :margin] = 0
    padded[:, bottom:] = 0
    padded[:, margin:bottom, :margin] = 0
    padded[:, margin:bottom, right:] = 0
    padded[:, margin:bottom, margin:right] = x
    return padded


def _blocks(y: Array) -> Array:
    """y (m, h, w, C) seen as 4×4 blocks: (m, h/4, w/4, 4, 4·C)."""
    m, height, width, c = y.shape
    return y.reshape(m, height // 4, 4, width // 4, 4 * c).swapaxes(2, 3)


def _add_tiles(tiles: Array, scratch: Scratch) -> Array:
    """Overlapping tiles (m, rows, columns, 6, 6·C) added up: (m, 4·rows + 2, 4·columns + 2, C)."""
    m, rows, columns, _, wide = tiles.shape
    c = wide // 6
    sums = scratch.array("padded", (m, 4 * rows + 2, 4 * columns + 2, c), tiles.dtype)
    sums[:, 4 * rows :] = 0
    sums[:, : 4 * rows, 4 * columns :] = 0
    picture, row, column, channel = sums.strides
    for i, j, high, wide in ((0, 0, 4, 4), (0, 4, 4, 2), (4, 0, 2, 4), (4, 4, 2, 2)):
        target = as_strided(  # where this part of all tiles goes; within it nothing overlaps
            sums[:, i:, j:],
            (m, rows, columns, high, wide * c),
            (picture, 4 * row, 4 * column, row, channel),
        )
        part = tiles[..., i : i + high, j * c : (j + wide) * c]
        np.add(target if i or j else 0, part, out=target)
    return sums
