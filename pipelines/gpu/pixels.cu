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
            int component = at < lumas ? 0 : 1 + (at - lumas) / mcus;
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

/* Return a sample of a chroma component at the place of a pixel: fancy upsampling of libjpeg, 3/4 of the nearest sample and
 * 1/4 of the next nearest on each axis. Images of up to two columns of chroma are upsampled without it. */
INLINE int chroma_at(const Batch &batch, const u8 *samples, int stride, int y, int x) {
    int h = batch.h, v = batch.v, width = (batch.width + h - 1) / h, height = (batch.height + v - 1) / v;
    int near_y = y >> (v - 1), near_x = x >> (h - 1);
    const u8 *line = samples + near_y * stride;
    if (h == 1 || width <= 2) return line[near_x];
    int next_x = clamp(x & 1 ? near_x + 1 : near_x - 1, 0, width - 1), odd = x & 1;
    if (v == 1) return (3 * line[near_x] + line[next_x] + 1 + odd) >> 2;
    const u8 *next = samples + clamp(y & 1 ? near_y + 1 : near_y - 1, 0, height - 1) * stride;
    return (3 * (3 * line[near_x] + next[near_x]) + 3 * line[next_x] + next[next_x] + 8 - odd) >> 4;
}

/* Return a pixel of the image, converted from YCbCr (JFIF 1.02) with the constants of libjpeg, of 16 bits. */
INLINE Colour pixel_at(const Batch &batch, const u8 *planes, int y, int x) {
    int luma = planes[y * plane_of(batch, 0).across * 8 + x];
    if (batch.components == 1) return {luma, luma, luma};
    Plane blue = plane_of(batch, 1), red = plane_of(batch, 2);
    int cb = chroma_at(batch, planes + blue.blocks_before * 64, blue.across * 8, y, x) - 128;
    int cr = chroma_at(batch, planes + red.blocks_before * 64, red.across * 8, y, x) - 128;
    return {clamp(luma + ((91881 * cr + 32768) >> 16), 0, 255),
            clamp(luma + ((-22554 * cb - 46802 * cr + 32768) >> 16), 0, 255),
            clamp(luma + ((116130 * cb + 32768) >> 16), 0, 255)};
}

struct Position { int low, high; float share; }; /* two pixels and the share of the second */

/* Return which pixels of a side of the box a pixel of the result lies between; centres of pixels lie at halves. */
INLINE Position position_of(int at, int size, int side) {
    int scaled = (2 * at + 1) * side - size, low = scaled < 0 ? -1 : scaled / (2 * size);
    float share = (float)(scaled - low * 2 * size) / (float)(2 * size);
    return {clamp(low, 0, side - 1), clamp(low + 1, 0, side - 1), share};
}

INLINE int mixed(int a, int b, int c, int d, float right, float down) {
    float top = a + right * (float)(b - a), bottom = c + right * (float)(d - c);
    return (int)(top + down * (bottom - top) + 0.5f);
}

/* Return a pixel of the crop, resized to size x size if the box has another size: linear, as cv2.INTER_LINEAR. */
INLINE Colour crop_at(const Batch &batch, const u8 *planes, const int *box, int y, int x) {
    int size = batch.size;
    if (box[2] == size && box[3] == size) return pixel_at(batch, planes, box[0] + y, box[1] + x);
    Position down = position_of(y, size, box[2]), right = position_of(x, size, box[3]);
    Colour a = pixel_at(batch, planes, box[0] + down.low, box[1] + right.low);
    Colour b = pixel_at(batch, planes, box[0] + down.low, box[1] + right.high);
    Colour c = pixel_at(batch, planes, box[0] + down.high, box[1] + right.low);
    Colour d = pixel_at(batch, planes, box[0] + down.high, box[1] + right.high);
    return {mixed(a.r, b.r, c.r, d.r, right.share, down.share), mixed(a.g, b.g, c.g, d.g, right.share, down.share),
            mixed(a.b, b.b, c.b, d.b, right.share, down.share)};
}

/* Return one colour of a jittered pixel. Weights have 10 bits after the point, as in OpenCV's transform of uint8. */
INLINE int jittered(const float *weights, const Colour &pixel) {
    int r = clamp(rounded(weights[0] * 1024.0f), -32768, 32767), g = clamp(rounded(weights[1] * 1024.0f), -32768, 32767);
    int b = clamp(rounded(weights[2] * 1024.0f), -32768, 32767), added = rounded((weights[3] + 0.5f) * 1024.0f);
    return clamp((r * pixel.r + g * pixel.g + b * pixel.b + added) >> 10, 0, 255);
}

/* Return the bits of a float16, rounded half to even. */
INLINE u16 half_of(float value) {
#ifndef EMULATED
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#else
    u32 bits, sign, most_finite = 0x477FF000; /* from here on infinite: 65520 */
    __builtin_memcpy(&bits, &value, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7FFFFFFF;
    if (bits > 0x7F800000) return (u16)(sign | 0x7FFF);
    if (bits >= most_finite) return (u16)(sign | 0x7C00);
    if (bits < 0x38800000) { /* below 2^-14: a multiple of 2^-24 */
        float small;
        __builtin_memcpy(&small, &bits, 4);
        return (u16)(sign | (u32)__builtin_rintf(small * 16777216.0f));
    }
    return (u16)(sign | (((bits + 0xFFF + (bits >> 13 & 1)) >> 13) - (112 << 10)));
#endif
}

/* Write one number of the result: (pixel + colour - mean) * scale, in the order of turbo's normalise_kernel.py, or, in
 * float32, of normalise.py on a CPU. */
INLINE void write(const Batch &batch, i64 at, int pixel, float colour, float mean, float scale) {
    if (batch.dtype == UINT8) ((u8 *)batch.images)[at] = (u8)pixel;
    else if (batch.dtype == FLOAT16) ((u16 *)batch.images)[at] = half_of(((float)pixel + colour - mean) * scale);
    else ((float *)batch.images)[at] = ((float)pixel - mean + colour) * scale;
}

/* Make the result of samples or, for rows without a file, of others. Rows with a problem become zeros. */
KERNEL(finish, FINISH_THREADS) {
    EACH_THREAD(FINISH_THREADS) {
        int size = batch.size, at = block * FINISH_THREADS + thread, y = at / size, x = at % size;
        if (y >= size) continue;
        i64 place = ((i64)row * size * size + at) * 3;
        const i64 *crop = batch.crops + 3 * row;
        const float *colour = batch.colours + 3 * row, *mean = 0;
        if (batch.status[row]) {
            for (int i = 0; i < 3; i++) write(batch, place + i, 0, 0, 0, 0);
            continue;
        }
        int pixel[3];
        if (!batch.sizes[row]) {
            for (int i = 0; i < 3; i++) pixel[i] = batch.others[place + i];
        } else {
            const u8 *planes = batch.planes + (i64)row * blocks_of(batch) * 64;
            Colour found = crop_at(batch, planes, batch.boxes + 4 * row, y, crop[2] ? size - 1 - x : x);
            const float *weights = batch.matrices + 12 * row;
            pixel[0] = batch.matrices ? jittered(weights, found) : found.r;
            pixel[1] = batch.matrices ? jittered(weights + 4, found) : found.g;
            pixel[2] = batch.matrices ? jittered(weights + 8, found) : found.b;
        }
        if (batch.mean_image)
            mean = batch.mean_image + ((crop[0] + y) * batch.width + crop[1] + (crop[2] ? size - 1 - x : x)) * 3;
        for (int i = 0; i < 3; i++)
            write(batch, place + i, pixel[i], colour[i], mean ? mean[i] : 0, batch.scale[i]);
    }
}
