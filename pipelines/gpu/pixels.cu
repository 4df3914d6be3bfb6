/* From coefficients to pixels to the network's input; batch.cu comes before. */

INLINE i16 saturated(int value) { return (i16)clamp(value, -32768, 32767); }

/* Transform 8 numbers in place: jidctint.c of libjpeg, the algorithm of Loeffler, Ligtenberg and Moschytz (1989), with
 * constants of 13 bits. Sums of inputs wrap at 16 bits and results are saturated, as in libjpeg-turbo's code for x86. */
INLINE void transform_8(i16 *x, int shift) {
    int half = 1 << (shift - 1);
    int even0 = (i16)(x[0] + x[4]) * 8192, even1 = (i16)(x[0] - x[4]) * 8192;
    int even2 = 4433 * x[2] - 10704 * x[6], even3 = 10703 * x[2] + 4433 * x[6];
    int even[4] = {even0 + even3 + half, even1 + even2 + half, even1 - even2 + half, even0 - even3 + half};
    int a = (i16)(x[7] + x[3]), b = (i16)(x[5] + x[1]);
    int c = -6436 * a + 9633 * b, d = 9633 * a + 6437 * b;
    int odd[4] = {-7373 * x[7] + 4926 * x[1] + d, -20995 * x[5] + 4177 * x[3] + c, -4176 * x[5] - 20995 * x[3] + d,
                  -4927 * x[7] - 7373 * x[1] + c};
    UNROLL for (int i = 0; i < 4; i++) {
        x[i] = saturated((even[i] + odd[i]) >> shift);
        x[7 - i] = saturated((even[i] - odd[i]) >> shift);
    }
}

/* Return true if all values of a block lie in its first row. */
INLINE bool is_one_row(const i16 *coefficients) {
    for (int i = 8; i < 64; i++)
        if (coefficients[i]) return false;
    return true;
}

/* Transform a column of a block: dequantise it (A.3.4), and keep two bits more than samples have. */
INLINE void transform_column(const i16 *coefficients, const i16 *steps, int column, i16 *out) {
    i16 x[8];
    UNROLL for (int i = 0; i < 8; i++) x[i] = (i16)(coefficients[8 * i + column] * steps[8 * i + column]);
    int dc = x[0];
    transform_8(x, 11);
    /* A block of one row is only shifted by libjpeg-turbo. That differs for values that no picture has, which wrap: */
    if (dc != clamp(dc, -8192, 8191) && is_one_row(coefficients))
        for (int i = 0; i < 8; i++) x[i] = (i16)(dc * 4);
    UNROLL for (int i = 0; i < 8; i++) out[8 * i + column] = x[i];
}

/* Transform a row of a block to samples, eight bytes. */
INLINE void transform_row(const i16 *numbers, u8 *out) {
    i16 x[8];
    UNROLL for (int i = 0; i < 8; i++) x[i] = numbers[i];
    transform_8(x, 18);
    u64 packed = 0;
    UNROLL for (int i = 7; i >= 0; i--) packed = packed << 8 | (u64)(clamp(x[i], -128, 127) + 128);
    *(u64 *)out = packed;
}

struct Plane { int blocks_before, across; }; /* of a component: blocks of those before it in the image, blocks of a row */

INLINE Plane plane_of(const Batch &batch, int component) {
    int mcus = batch.mcus_down * batch.mcus_across;
    if (component) return {mcus * (batch.h * batch.v + component - 1), batch.mcus_across};
    return {0, batch.mcus_across * batch.h};
}

/* Return true if a block of a component is part of an MCU in the window. */
INLINE bool is_shown(const Batch &batch, const Window &window, int component, int line, int column) {
    int h = component ? 1 : batch.h, v = component ? 1 : batch.v;
    return line >= window.top * v && line < window.bottom * v && column >= window.left * h && column < window.right * h;
}

/* Make samples of the coefficients of the blocks that a crop shows (A.3.3): first columns, then rows. */
KERNEL(transform, TRANSFORM_THREADS) {
    SHARED i16 between[TRANSFORM_THREADS * 8];
    int blocks = blocks_of(batch), mcus = batch.mcus_down * batch.mcus_across, lumas = mcus * batch.h * batch.v;
    bool absent = batch.ends[(i64)row * batch.pieces] < 0;
    Window window = absent ? Window{0, 0, 0, 0} : window_of(batch, row);
    for (int pass = 0; pass < 2; pass++) {
        EACH_THREAD(TRANSFORM_THREADS) {
            int at = block * (TRANSFORM_THREADS / 8) + thread / 8, lane = thread % 8;
            if (absent || at >= blocks) continue;
            int component = at < lumas ? 0 : at < lumas + mcus ? 1 : 2;
            Plane plane = plane_of(batch, component);
            int line = (at - plane.blocks_before) / plane.across, column = (at - plane.blocks_before) % plane.across;
            if (!is_shown(batch, window, component, line, column)) continue;
            i16 *numbers = between + thread / 8 * 64;
            if (!pass) {
                const i16 *coefficients = batch.coefficients + ((i64)row * blocks + at) * 64;
                transform_column(coefficients, batch.tables->steps[component], lane, numbers);
            } else {
                u8 *samples = batch.planes + ((i64)row * blocks + plane.blocks_before) * 64;
                transform_row(numbers + 8 * lane, samples + ((i64)(8 * line + lane) * plane.across + column) * 8);
            }
        }
    }
}

struct Colour { int r, g, b; };

INLINE Colour pixel_of(const u8 *stored) { return {stored[0], stored[1], stored[2]}; }

struct Line { /* what the pixels of a line of the image are made of: a line of luma, two of each chroma component */
    const u8 *luma, *near[2], *next[2];
};

INLINE bool is_narrow(const Batch &batch) { return batch.width <= 2 * batch.h; }

/* Return the lines of samples for a line of an image, whose planes these are: the nearest and the next nearest of chroma. */
INLINE Line line_of(const Batch &batch, const u8 *planes, int y) {
    int v = batch.v, height = (batch.height + v - 1) >> (v - 1), near = y >> (v - 1);
    int next = v == 1 || is_narrow(batch) ? near : clamp(y & 1 ? near + 1 : near - 1, 0, height - 1);
    Line line = {planes + y * plane_of(batch, 0).across * 8, {}, {}};
    UNROLL for (int i = 0; i < 2; i++) {
        Plane plane = plane_of(batch, batch.components > 1 ? 1 + i : 0);
        const u8 *samples = planes + plane.blocks_before * 64;
        line.near[i] = samples + near * plane.across * 8;
        line.next[i] = samples + next * plane.across * 8;
    }
    return line;
}

/* Return a pixel of a line. Chroma is upsampled as by libjpeg ("fancy"): on each axis 3/4 of the nearest sample and 1/4 of
 * the next nearest, but if there are only two columns of it the nearest alone. Then YCbCr (JFIF 1.02) is converted with the
 * constants of libjpeg, of 16 bits. */
INLINE Colour pixel_at(const Batch &batch, const Line &line, int x) {
    int luma = line.luma[x], h = batch.h, odd = x & 1, near = x >> (h - 1), chroma[2];
    int last = ((batch.width + h - 1) >> (h - 1)) - 1;
    if (batch.components == 1) return {luma, luma, luma};
    int next = h == 1 || is_narrow(batch) ? near : clamp(odd ? near + 1 : near - 1, 0, last);
    int half = batch.v == 1 ? 4 + 4 * odd : 8 - odd; /* of 16ths; in turns more and less than a half */
    UNROLL for (int i = 0; i < 2; i++) {
        const u8 *a = line.near[i], *b = line.next[i];
        chroma[i] = ((3 * (3 * a[near] + b[near]) + 3 * a[next] + b[next] + half) >> 4) - 128;
    }
    return {clamp(luma + ((91881 * chroma[1] + 32768) >> 16), 0, 255),
            clamp(luma + ((-22554 * chroma[0] - 46802 * chroma[1] + 32768) >> 16), 0, 255),
            clamp(luma + ((116130 * chroma[0] + 32768) >> 16), 0, 255)};
}

struct Position { int low, high; float share; }; /* two pixels and the share of the second */

/* Return which pixels of a side of the box a pixel of the result lies between; centres of pixels lie at halves. */
INLINE Position position_of(int at, float ratio, int side) {
    float place = ((float)at + 0.5f) * ratio - 0.5f;
    int low = (int)(place + 1.0f) - 1; /* rounded down: place is above -1 */
    return {clamp(low, 0, side - 1), clamp(low + 1, 0, side - 1), place - (float)low};
}

INLINE int mixed(int a, int b, int c, int d, float right, float down) {
    float top = a + right * (float)(b - a), bottom = c + right * (float)(d - c);
    return (int)(top + down * (bottom - top) + 0.5f);
}

INLINE Colour mixture(const Colour &a, const Colour &b, const Colour &c, const Colour &d, float right, float down) {
    return {mixed(a.r, b.r, c.r, d.r, right, down), mixed(a.g, b.g, c.g, d.g, right, down),
            mixed(a.b, b.b, c.b, d.b, right, down)};
}

/* Return one colour of a jittered pixel. Weights have 10 bits after the point, as in OpenCV's transform of uint8. */
INLINE int jittered(const float *weights, const Colour &pixel) {
    int r = clamp(rounded(weights[0] * 1024.0f), -32768, 32767), g = clamp(rounded(weights[1] * 1024.0f), -32768, 32767);
    int b = clamp(rounded(weights[2] * 1024.0f), -32768, 32767), added = rounded((weights[3] + 0.5f) * 1024.0f);
    return clamp((r * pixel.r + g * pixel.g + b * pixel.b + added) >> 10, 0, 255);
}

struct View { /* a line of the result, as it is made of an image */
    Line top, bottom;      /* lines of the image; only the first if the crop is not resized */
    float down;            /* share of the second */
    float ratio;           /* width of the box over that of the result */
    int left, width;       /* of the box */
    bool resized;
    const float *weights;  /* of the jitter, or 0 */
};

INLINE View view_of(const Batch &batch, int row, int y) {
    const int *box = batch.boxes + 4 * row, size = batch.size;
    const u8 *planes = batch.planes + (i64)row * blocks_of(batch) * 64;
    bool resized = box[2] != size || box[3] != size;
    Position down = resized ? position_of(y, (float)box[2] / (float)size, box[2]) : Position{y, y, 0};
    return {line_of(batch, planes, box[0] + down.low), line_of(batch, planes, box[0] + down.high), down.share,
            (float)box[3] / (float)size, box[1], box[3], resized, batch.matrices ? batch.matrices + 12 * row : 0};
}

/* Return a pixel of the line: of the crop, resized to size x size if the box has another size (linear, as
 * cv2.INTER_LINEAR), jittered. */
INLINE Colour shown_at(const Batch &batch, const View &view, int x) {
    Colour found;
    if (view.resized) {
        Position right = position_of(x, view.ratio, view.width);
        int low = view.left + right.low, high = view.left + right.high;
        found = mixture(pixel_at(batch, view.top, low), pixel_at(batch, view.top, high), pixel_at(batch, view.bottom, low),
                        pixel_at(batch, view.bottom, high), right.share, view.down);
    } else {
        found = pixel_at(batch, view.top, view.left + x);
    }
    const float *weights = view.weights;
    return weights ? Colour{jittered(weights, found), jittered(weights + 4, found), jittered(weights + 8, found)} : found;
}

/* Write a pixel of the result: (pixel + colour - mean) * scale, in the order of turbo's normalise_kernel.py, or, in
 * float32, of normalise.py on a CPU. */
INLINE void write(const Batch &batch, i64 place, const Colour &pixel, const float *colour, const float *mean) {
    int value[3] = {pixel.r, pixel.g, pixel.b};
    if (batch.dtype == UINT8) {
        UNROLL for (int i = 0; i < 3; i++) ((u8 *)batch.images)[place + i] = (u8)value[i];
    } else if (batch.dtype == FLOAT16) {
        UNROLL for (int i = 0; i < 3; i++)
            ((u16 *)batch.images)[place + i] =
                half_of(((float)value[i] + colour[i] - (mean ? mean[i] : 0)) * batch.scale[i]);
    } else {
        UNROLL for (int i = 0; i < 3; i++)
            ((float *)batch.images)[place + i] =
                ((float)value[i] - (mean ? mean[i] : 0) + colour[i]) * batch.scale[i];
    }
}

/* Write a pixel of zeros. */
INLINE void write_nothing(const Batch &batch, i64 place) {
    int bytes = batch.dtype == UINT8 ? 3 : batch.dtype == FLOAT16 ? 6 : 12;
    for (int i = 0; i < bytes; i++) ((u8 *)batch.images)[place / 3 * bytes + i] = 0;
}

/* Make the result, of a row's file, or of others if it has none. Rows with a problem become zeros. A thread makes AT_ONCE
 * pixels of a line, far from each other: neighbouring threads write neighbouring pixels. */
KERNEL(finish, FINISH_THREADS) {
    EACH_THREAD(FINISH_THREADS) {
        int size = batch.size, step = (size + AT_ONCE - 1) / AT_ONCE, at = block * FINISH_THREADS + thread;
        int y = at / step, begin = at % step;
        if (y >= size) continue;
        const i64 *crop = batch.crops + 3 * row;
        bool right = !batch.status[row], coded = batch.sizes[row], flipped = crop[2];
        const float *mean = batch.mean_image;
        View view;
        if (right && coded) view = view_of(batch, row, y);
        if (right && mean) mean += ((crop[0] + y) * batch.width + crop[1]) * 3;
        for (int x = begin; x < size; x += step) {
            i64 place = (((i64)row * size + y) * size + x) * 3;
            int from = flipped ? size - 1 - x : x;
            if (!right) {
                write_nothing(batch, place);
            } else {
                Colour pixel = coded ? shown_at(batch, view, from) : pixel_of(batch.others + place);
                write(batch, place, pixel, batch.colours + 3 * row, mean ? mean + 3 * from : 0);
            }
        }
    }
}
