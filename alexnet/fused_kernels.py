"""Triton kernels of bias, ReLU, local response normalisation (section 3.3 of the paper) and max-pooling (3.4).

    a = relu(maps + bias);  d = k + scale * sum of a^2 over 5 channels;  y = a d^-0.75;  pooled = max of y over 3 x 3
    da = dy d^-0.75 - 1.5 scale a * sum of (dy a d^-1.75) over 5 channels,  scale = alpha / 5

One pass each: the forward kernel reads the maps and writes pooled maps and offsets (uint8: which of the 9 places of a
window won). The backward kernel reads maps, offsets and gradient, computes d again and writes the maps' gradient.

A lane (one thread) handles 8 neighbouring channels of a pixel: a load of 16 bytes in half precision. It also loads the
4 channels on either side. So d of 12 channels follows from squares of 16, and sums over 12 give gradients of 8: nothing
comes from another lane, and neighbours' loads hit the L1 cache. Tensors are N,H,W,C in memory. Arithmetic is float32.
Nothing is added atomically, so that results are the same in every run.

Not timed on any GPU yet. ptxas for sm_90, C = 96, bfloat16: 127 registers forward, 142 backward, no spills, no shared
memory but for the sums of the bias. By instructions (1,480 and 1,830 a warp) a paper step of 1024 takes 0.7 ms forward
and 1.0 ms backward, by bytes 0.4 and 0.8. To try: the blocks of fused_operation.py; a forward lane that pools 2 x 2
windows, to compute d of 25 positions in place of 36.
"""

# Triton compiles what stands here: it has no unpacking, needs each else, and its tuples grow.
# ruff: noqa: RUF005, RET505
# mypy: disable-error-code="assignment"

import triton
import triton.language as tl

NONE = tl.constexpr(255)  # offset of a window whose maximum a ReLU after pooling cut off: it passes no gradient


@triton.jit
def pool_forward(
    maps, bias, pooled, offsets, lanes,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr, GROUP: tl.constexpr,
    SCALE: tl.constexpr, K: tl.constexpr, NORMALISE: tl.constexpr, RELU: tl.constexpr,
    WINDOW: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write ``pooled`` and ``offsets``, N,OH,OW,C, from ``maps`` N,H,W,C and ``bias`` C or None. A lane is 8 outputs.

    ``RELU`` is before, after or none. Only channels of a ``GROUP`` see each other.
    """
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel, pixel = lane % (C // 8) * 8, lane // (C // 8)
    row, column = pixel // OW % OH * STRIDE, pixel % OW * STRIDE
    corner = (pixel // (OH * OW) * H + row) * W + column
    inside = lane < lanes
    bias_before, bias_own, bias_after = _load_bias(bias, channel, inside, GROUP, NORMALISE)
    best = tl.full([BLOCK, 8], float("-inf"), tl.float32)
    where = tl.full([BLOCK, 8], 0, tl.int32)
    for place in tl.static_range(WINDOW * WINDOW):
        start = (corner + place // WINDOW * W + place % WINDOW).to(tl.int64) * C + channel
        before, y, after = _load(maps, start, channel, inside, GROUP, NORMALISE)
        before, y, after = before + bias_before, y + bias_own, after + bias_after
        if RELU == "before":
            before, y, after = _relu(before), _relu(y), _relu(after)
        if NORMALISE:
            a = _split4(before) + _split8(y) + _split4(after)
            d = _denominators(a, SCALE, K)
            y *= _inverse_powers(d[2:10])
        better = (y > best) | (y != y)  # the first maximum wins, and NaN does, as in torch's max_pool2d
        best = tl.where(better, y, best)
        where = tl.where(better, place, where)
    if RELU == "after":
        where = tl.where(best <= 0, NONE, where)
        best = _relu(best)
    out = (lane.to(tl.int64) * 8)[:, None] + tl.arange(0, 8)[None, :]
    tl.store(pooled + out, best.to(pooled.dtype.element_ty), inside[:, None])
    if WINDOW > 1:
        tl.store(offsets + out, where.to(tl.uint8), inside[:, None])


@triton.jit
def pool_backward(
    maps, bias, gradient, offsets, maps_gradient, bias_sums, cells, programs,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr, GROUP: tl.constexpr,
    SCALE: tl.constexpr, K: tl.constexpr, NORMALISE: tl.constexpr, RELU: tl.constexpr,
    WINDOW: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write ``maps_gradient`` N,H,W,C, and the gradient of ``bias`` as ``bias_sums``: programs,TILE,C float32.

    A lane is 8 channels of a cell: the STRIDE x STRIDE positions from a window's corner on, which lie in that window
    and in those above and left of it. Each position gathers the gradients of the windows that it won. A program takes
    every ``programs``-th tile of cells, so that a lane has the same channels in each, and sums their gradients.
    """
    TILE: tl.constexpr = BLOCK // (C // 8)  # cells
    REACH: tl.constexpr = (WINDOW + STRIDE - 1) // STRIDE  # windows around a cell, along a side
    DOWN: tl.constexpr = (H + STRIDE - 1) // STRIDE  # cells of an image
    ACROSS: tl.constexpr = (W + STRIDE - 1) // STRIDE
    lane = tl.arange(0, BLOCK)
    channel, first = lane % (C // 8) * 8, lane // (C // 8)
    used = first < TILE
    bias_before, bias_own, bias_after = _load_bias(bias, channel, used, GROUP, NORMALISE)
    total = tl.full([BLOCK, 8], 0, tl.float32)
    for tile in range(tl.program_id(0), (cells + TILE - 1) // TILE, programs):
        cell = tile * TILE + first
        inside = used & (cell < cells)
        image, up, left = cell // (DOWN * ACROSS), cell // ACROSS % DOWN, cell % ACROSS
        won = ()
        dy = ()
        for window in tl.static_range(REACH * REACH):
            row, column = up - window // REACH, left - window % REACH
            there = inside & (row >= 0) & (row < OH) & (column >= 0) & (column < OW)
            start = ((image * OH + row) * OW + column).to(tl.int64) * C + channel
            dy = dy + (_load(gradient, start, channel, there, GROUP, NORMALISE),)
            if WINDOW > 1:
                won = won + (_load(offsets, start, channel, there, GROUP, NORMALISE),)
        for position in tl.static_range(STRIDE * STRIDE):
            row, column = up * STRIDE + position // STRIDE, left * STRIDE + position % STRIDE
            here = inside & (row < H) & (column < W)
            start = ((image * H + row) * W + column).to(tl.int64) * C + channel
            before, x, after = _load(maps, start, channel, here, GROUP, NORMALISE)
            before, x, after = before + bias_before, x + bias_own, after + bias_after
            dx_before, dx, dx_after = _gather(dy, won, position, WINDOW, STRIDE, REACH)
            if NORMALISE:
                a_before, a, a_after = before, x, after
                if RELU == "before":
                    a_before, a, a_after = _relu(before), _relu(x), _relu(after)
                a = _split4(a_before) + _split8(a) + _split4(a_after)
                dx = _normalise_backward(a, _split4(dx_before) + _split8(dx) + _split4(dx_after), SCALE, K)
            if RELU == "before":
                dx = tl.where(x <= 0, 0.0, dx)
            out = start[:, None] + tl.arange(0, 8)[None, :]
            tl.store(maps_gradient + out, dx.to(maps_gradient.dtype.element_ty), here[:, None])
            total += tl.where(here[:, None], dx, 0.0)
    if bias is not None:
        place = (tl.program_id(0) * TILE + first) * C + channel
        tl.store(bias_sums + place[:, None] + tl.arange(0, 8)[None, :], total, used[:, None])


@triton.jit
def _gather(dy, won, position: tl.constexpr, WINDOW: tl.constexpr, STRIDE: tl.constexpr, REACH: tl.constexpr):
    """Return the gradient of a cell's position: the sum over the windows that contain it and whose maximum it was."""
    if WINDOW == 1:
        before, own, after = dy[0]
        return before.to(tl.float32), own.to(tl.float32), after.to(tl.float32)
    else:
        before, own, after = 0.0, 0.0, 0.0
        for place in tl.static_range(WINDOW * WINDOW):
            if place // WINDOW % STRIDE == position // STRIDE and place % WINDOW % STRIDE == position % STRIDE:
                part = dy[place // WINDOW // STRIDE * REACH + place % WINDOW // STRIDE]
                winner = won[place // WINDOW // STRIDE * REACH + place % WINDOW // STRIDE]
                before += tl.where(winner[0] == place, part[0].to(tl.float32), 0.0)
                own += tl.where(winner[1] == place, part[1].to(tl.float32), 0.0)
                after += tl.where(winner[2] == place, part[2].to(tl.float32), 0.0)
        return before, own, after


@triton.jit
def _load(pointer, start, channel, mask, GROUP: tl.constexpr, NEIGHBOURS: tl.constexpr):
    """Return 4 channels before a lane's, its 8, and 4 after: zeros outside its group and where masked."""
    four, eight = tl.arange(0, 4)[None, :], tl.arange(0, 8)[None, :]
    own = tl.load(pointer + start[:, None] + eight, mask[:, None], 0)
    if NEIGHBOURS:
        has_before, has_after = mask & (channel % GROUP != 0), mask & (channel % GROUP != GROUP - 8)
        before = tl.load(pointer + (start - 4)[:, None] + four, has_before[:, None], 0)
        after = tl.load(pointer + (start + 8)[:, None] + four, has_after[:, None], 0)
    else:
        before = tl.full([start.shape[0], 4], 0, own.dtype)
        after = before
    return before, own, after


@triton.jit
def _load_bias(bias, channel, mask, GROUP: tl.constexpr, NEIGHBOURS: tl.constexpr):
    if bias is not None:
        return _load(bias, channel, channel, mask, GROUP, NEIGHBOURS)
    else:
        return (
            tl.full([channel.shape[0], 4], 0, tl.float32),
            tl.full([channel.shape[0], 8], 0, tl.float32),
            tl.full([channel.shape[0], 4], 0, tl.float32),
        )


@triton.jit
def _relu(x):
    return tl.where(x <= 0, 0.0, x)  # NaN stays


@triton.jit
def _denominators(a, SCALE: tl.constexpr, K: tl.constexpr):
    """Return d of the middle 12 of 16 channels."""
    square = ()
    for i in tl.static_range(16):
        square = square + (a[i] * a[i],)
    d = ()
    for i in tl.static_range(12):
        d = d + (K + SCALE * _sum_of_five(square, i),)
    return d


@triton.jit
def _sum_of_five(x, i: tl.constexpr):
    return x[i] + x[i + 1] + x[i + 2] + x[i + 3] + x[i + 4]


@triton.jit
def _inverse_powers(d):
    """Return d^-0.75 of 8 channels, BLOCK,8: two approximations in hardware and a product each."""
    power = ()
    for i in tl.static_range(8):
        root = tl.rsqrt(d[i])
        power = power + (root * tl.sqrt(root),)
    return _join8(power)


@triton.jit
def _normalise_backward(a, dy, SCALE: tl.constexpr, K: tl.constexpr):
    """Return da of the middle 8 of 16 channels, BLOCK,8."""
    d = _denominators(a, SCALE, K)
    direct = ()  # dy d^-0.75
    across = ()  # dy a d^-1.75
    for i in tl.static_range(12):
        root = tl.rsqrt(d[i])
        scaled = dy[i + 2] * root * tl.sqrt(root)
        direct = direct + (scaled,)
        across = across + (scaled * a[i + 2] * root * root,)
    da = ()
    for i in tl.static_range(8):
        da = da + (direct[i + 2] - 1.5 * SCALE * a[i + 4] * _sum_of_five(across, i),)
    return _join8(da)


@triton.jit
def _split4(x):
    """Return the columns of BLOCK,4. Layouts follow loads of neighbouring values, so that nothing moves."""
    even, odd = tl.split(tl.reshape(x, [x.shape[0], 2, 2]))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _split8(x):
    even, odd = tl.split(tl.reshape(x, [x.shape[0], 4, 2]))
    x0, x2, x4, x6 = _split4(even)
    x1, x3, x5, x7 = _split4(odd)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def _join4(x0, x1, x2, x3):
    return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), [x0.shape[0], 4])


@triton.jit
def _join8(x):
    """Return 8 columns as BLOCK,8."""
    even, odd = _join4(x[0], x[2], x[4], x[6]), _join4(x[1], x[3], x[5], x[7])
    return tl.reshape(tl.join(even, odd), [x[0].shape[0], 8])
