/* Rendering of samples without Python: find a sample in its shard, check it, and decode its crop into the batch, or copy the
 * crop of raw pixels. No rows of a JPEG below the crop are decoded, and few columns beside it.
 *
 * A sample that is not as the sharding tool writes it is left to the Python code, which reports what is wrong with it; so
 * there are no error messages here. native.py calls this through ctypes, which releases Python's lock. README.md has the
 * contract between the two.
 */

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "entropy.h"
#include "sample.h"

#define MAX_PIXELS (1 << 26)   /* of an image; larger ones are left to Python */
#define ROWS 4                 /* rows decoded by one call of libjpeg */
#define MARGIN 2               /* pixels around the crop that upsampling of chroma at its edges reads */

/* Return a number for the layout of the two structs. native.py loads no library whose number differs from its own. */
int layout(void) { return sizeof(struct settings) * 1000 + sizeof(struct sample); }

struct worker { /* a thread's decoder and memory */
    struct jpeg_decompress_struct info; /* first, so that a pointer to it is one to the worker */
    struct jpeg_error_mgr errors;
    jmp_buf failed;                     /* the place that fail jumps to */
    struct entropy *entropy;
    uint8_t *span, *rows, *parts;       /* a sample's bytes in its shard; decoded rows; crops that Python must resize */
    size_t span_room, rows_room, parts_room; /* bytes allocated for each */
};

/* Abandon the current image: jump to the setjmp of its function. libjpeg calls this as error_exit. */
static void fail(j_common_ptr info) { longjmp(((struct worker *)info)->failed, 1); }

/* Treat warnings, which libjpeg gives for damaged data, as errors. libjpeg calls this as emit_message. */
static void fail_on_warning(j_common_ptr info, int level) {
    if (level < 0) fail(info);
}

/* Return a new worker, or NULL if memory is short or the libjpeg loaded is not the one this was compiled for. All tables
 * are allocated, so that forget_tables can empty them. */
struct worker *worker_new(void) {
    struct worker *worker = calloc(1, sizeof *worker);
    if (!worker || !(worker->entropy = entropy_new())) return NULL;
    worker->info.err = jpeg_std_error(&worker->errors);
    worker->errors.error_exit = fail;
    worker->errors.emit_message = fail_on_warning;
    if (setjmp(worker->failed)) return NULL; /* jpeg_create_decompress compares versions and struct sizes */
    jpeg_create_decompress(&worker->info);
    j_common_ptr common = (j_common_ptr)&worker->info;
    for (int i = 0; i < NUM_QUANT_TBLS; i++) worker->info.quant_tbl_ptrs[i] = jpeg_alloc_quant_table(common);
    for (int i = 0; i < NUM_HUFF_TBLS; i++) {
        worker->info.dc_huff_tbl_ptrs[i] = jpeg_alloc_huff_table(common);
        worker->info.ac_huff_tbl_ptrs[i] = jpeg_alloc_huff_table(common);
    }
    return worker;
}

void worker_free(struct worker *worker) {
    jpeg_destroy_decompress(&worker->info);
    entropy_free(worker->entropy);
    free(worker->span);
    free(worker->rows);
    free(worker->parts);
    free(worker);
}

/* Return the crops that Python must resize. They may move in render_samples and stay valid until its next call. */
uint8_t *worker_parts(struct worker *worker) { return worker->parts; }

/* Make sure that wanted bytes are allocated. Return false if memory is short; the old memory stays then. */
static int grow(uint8_t **memory, size_t *room, size_t wanted) {
    if (*room >= wanted) return 1;
    uint8_t *larger = realloc(*memory, wanted);
    if (!larger) return 0;
    *memory = larger;
    *room = wanted;
    return 1;
}

static int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
static int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

/* Read a sample's span into the worker's memory, and its label. Return false if it is left to Python. */
static int read_sample(struct worker *worker, const struct settings *settings, struct sample *sample,
                       const struct location *location) {
    return grow(&worker->span, &worker->span_room, span_length(location))
        && read_span(settings, location, sample->file, worker->span, &sample->label);
}

#if defined __has_builtin && defined __x86_64__ && defined __linux__
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES
#endif
#endif

#ifdef SHUFFLES /* vector instructions: a third of the time */
typedef uint8_t pixels_t __attribute__((vector_size(16)));

/* Mirror four pixels at a time, from three or four stored bytes each to three. Return how many were mirrored. It stops at
 * fewer than 6 pixels, because each step writes 16 bytes, 4 more than its pixels: they must lie within the row. */
__attribute__((target_clones("ssse3", "default")))
static int mirror_fours(uint8_t *out, const uint8_t *row, int width, int stored) {
    int done = 0;
    for (; width - done >= 6; done += 4) {
        pixels_t four;
        memcpy(&four, row + stored * (width - done - 4), 16);
        if (stored == 4) four = __builtin_shufflevector(four, four, 12, 13, 14, 8, 9, 10, 4, 5, 6, 0, 1, 2, 3, 3, 3, 3);
        else four = __builtin_shufflevector(four, four, 9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2, 3, 3, 3, 3);
        memcpy(out + 3 * done, &four, 16);
    }
    return done;
}
#else
static int mirror_fours(uint8_t *out, const uint8_t *row, int width, int stored) { return 0; }
#endif

/* Mirror a row of width pixels, of stored bytes each, to pixels of channels bytes. Bytes written beyond a pixel are
 * overwritten by the next one. Up to four bytes behind the row are read. */
static void mirror(uint8_t *out, const uint8_t *row, int width, int stored, int channels) {
    int done = channels == 3 ? mirror_fours(out, row, width, stored) : 0;
    for (; done < width - 1; done++) memcpy(out + channels * done, row + stored * (width - 1 - done), 4);
    memcpy(out + channels * done, row, channels);
}

/* Empty all tables. libjpeg keeps them from image to image (for MJPEG streams), so a file that lacks a table would be
 * decoded with an earlier file's. In an empty Huffman table no code is valid; a quantisation step of 0 marks its table as
 * undefined, which is_quantised checks. */
static void forget_tables(struct jpeg_decompress_struct *info) {
    for (int i = 0; i < NUM_QUANT_TBLS; i++)
        memset(info->quant_tbl_ptrs[i]->quantval, 0, sizeof info->quant_tbl_ptrs[i]->quantval);
    for (int i = 0; i < NUM_HUFF_TBLS; i++) {
        memset(info->dc_huff_tbl_ptrs[i]->bits, 0, sizeof info->dc_huff_tbl_ptrs[i]->bits);
        memset(info->ac_huff_tbl_ptrs[i]->bits, 0, sizeof info->ac_huff_tbl_ptrs[i]->bits);
    }
}

/* Return true if the file defined the quantisation table of every component. */
static int is_quantised(const struct jpeg_decompress_struct *info) {
    for (int i = 0; i < info->num_components; i++)
        if (!info->comp_info[i].quant_table->quantval[0]) return 0;
    return 1;
}

/* Return true for grey and for 4:4:4, 4:2:2, 4:4:0, 4:2:0 and 4:1:1. Decoders disagree on the pixels of other samplings, even
 * libjpeg-turbo with itself if it decodes a part of the image. common_sampling in jpeg_header.py is the same rule. */
static int is_common_sampling(const struct jpeg_decompress_struct *info) {
    const jpeg_component_info *parts = info->comp_info;
    if (info->num_components != 3) return info->num_components == 1;
    for (int i = 1; i < 3; i++)
        if (parts[i].h_samp_factor != 1 || parts[i].v_samp_factor != 1) return 0;
    int h = parts[0].h_samp_factor, v = parts[0].v_samp_factor;
    return (h <= 2 && v <= 2) || (h == 4 && v == 1);
}

/* Decode a box of the image whose header libjpeg has read to out, with 3 channels, RGB, or 4, RGB and padding. The box is in
 * pixels of the shrunk image; out has room for it and nothing more. Call fail for damaged data. */
static void decode_part(struct worker *worker, struct box box, int flip, int channels, uint8_t *out) {
    struct jpeg_decompress_struct *info = &worker->info;
    int stored = flip ? 4 : channels; /* bytes of a decoded pixel: a pixel of four is mirrored as one word */
    info->out_color_space = stored == 4 ? JCS_EXT_RGBX : JCS_EXT_RGB;
    jpeg_start_decompress(info);
    if (!is_quantised(info)) fail((j_common_ptr)info);

    int32_t right = box.left + box.width + MARGIN, bottom = box.top + box.height + MARGIN, scale = info->scale_denom;
    entropy_replace(worker->entropy, info, scale * (box.top - MARGIN), scale * bottom, scale * (box.left - MARGIN),
                    scale * right);
    JDIMENSION first = larger(0, box.left - MARGIN), columns = right - first;
    if (first + columns > info->output_width) columns = info->output_width - first;
    jpeg_crop_scanline(info, &first, &columns);

    /* Let rows begin half way between two multiples of 32 bytes. To a multiple libjpeg-turbo writes around the cache, and
     * reading the rows back from main memory would take a tenth of all the time. */
    size_t stride = ((size_t)stored * info->output_width + 31) / 32 * 32;
    if (!grow(&worker->rows, &worker->rows_room, ROWS * stride + 64)) fail((j_common_ptr)info);
    uint8_t *begin = worker->rows + (16 - (uintptr_t)worker->rows % 32 + 32) % 32;
    JSAMPROW rows[ROWS];
    for (int i = 0; i < ROWS; i++) rows[i] = begin + i * stride;

    if (box.top > 0) jpeg_skip_scanlines(info, box.top);
    size_t row_bytes = (size_t)box.width * channels;
    for (int left = box.height; left > 0;) {
        int read = jpeg_read_scanlines(info, rows, left < ROWS ? left : ROWS);
        if (read < 1) fail((j_common_ptr)info);
        for (int i = 0; i < read; i++, left--, out += row_bytes) {
            const uint8_t *row = rows[i] + (size_t)stored * (box.left - first);
            if (flip) mirror(out, row, box.width, 4, channels);
            else memcpy(out, row, row_bytes);
        }
    }
}

/* Render a JPEG sample. A crop that needs no resizing goes to out. Any other is decoded at 1/2, 1/4 or 1/8 if that leaves
 * size pixels a side, and goes behind the used bytes of the worker's parts. Set done, or leave the sample to Python. */
static void render(struct worker *worker, const struct settings *settings, struct sample *sample,
                  const struct location *location, const double *draws, int32_t attempts, size_t used, uint8_t *out) {
    struct jpeg_decompress_struct *info = &worker->info;
    int32_t size = settings->size;
    struct box box;
    if (setjmp(worker->failed)) {
        jpeg_abort_decompress(info);
        return;
    }
    forget_tables(info);
    jpeg_mem_src(info, worker->span + BLOCK, location->size);
    jpeg_read_header(info, TRUE);
    int64_t height = info->image_height, width = info->image_width;
    int64_t shortest = height < width ? height : width, longest = height < width ? width : height;
    if (height * width > MAX_PIXELS || longest > settings->most_elongated * shortest
        || (settings->square && (height != settings->square || width != settings->square))
        || jpeg_has_multiple_scans(info) /* each may take as long as the whole image */
        || !is_common_sampling(info)
        || !choose_box(settings, draws, attempts, height, width, sample->crop_at, &box)) fail((j_common_ptr)info);

    int32_t shrink = 1;
    info->scale_num = 1;
    if (box.height != size || box.width != size) {
        for (int32_t times = 2; times <= 8; times *= 2)
            if (smaller(box.height, box.width) >= times * size) shrink = times;
        box = (struct box){box.top / shrink, box.left / shrink, box.height / shrink, box.width / shrink};
        if (!grow(&worker->parts, &worker->parts_room, used + (size_t)4 * box.height * box.width))
            fail((j_common_ptr)info);
        sample->height = box.height;
        sample->width = box.width;
        sample->at = used;
    }
    info->scale_denom = shrink;
    if (sample->height) decode_part(worker, box, sample->flip, 4, worker->parts + used);
    else decode_part(worker, box, sample->flip, 3, out);
    jpeg_abort_decompress(info);
    sample->done = 1;
}

/* Copy the crop of a sample of raw pixels to out, if it needs no resizing, and set done. Else leave it to Python. */
static void copy_part(const struct settings *settings, struct sample *sample, const uint8_t *image, int64_t bytes,
                      const double *draws, int32_t attempts, uint8_t *out) {
    int64_t side = settings->square, header = settings->raw_header_bytes;
    struct box box;
    if (bytes != header + 3 * side * side || memcmp(image, settings->raw_header, header)
        || !choose_box(settings, draws, attempts, side, side, sample->crop_at, &box)
        || box.height != settings->size || box.width != settings->size) return;
    const uint8_t *row = image + header + 3 * (box.top * side + box.left);
    for (int32_t left = box.height; left > 0; left--, row += 3 * side, out += 3 * box.width) {
        if (sample->flip) mirror(out, row, box.width, 3, 3);
        else memcpy(out, row, 3 * box.width);
    }
    sample->done = 1;
}

/* Find and render count samples. Each has 4 draws for each of the attempts; the draws of the next sample are stride doubles
 * ahead. out has the shape count, size, size, 3. The worker's parts are filled from their beginning. */
void render_samples(struct worker *worker, const struct settings *settings, struct sample *samples, int32_t count,
                   const double *draws, int64_t stride, int32_t attempts, uint8_t *out) {
    struct location location;
    size_t used = 0;
    for (int32_t i = 0; i < count; i++, draws += stride, out += (size_t)3 * settings->size * settings->size) {
        struct sample *sample = &samples[i];
        sample->done = sample->height = sample->width = 0;
        if (!find_sample(settings, sample->line, sample->length, &location) || !read_sample(worker, settings, sample, &location)) continue;
        if (settings->raw_header_bytes)
            copy_part(settings, sample, worker->span + BLOCK, location.size, draws, attempts, out);
        else
            render(worker, settings, sample, &location, draws, attempts, used, out);
        if (sample->done) used += (size_t)4 * sample->height * sample->width;
    }
}

/* Return 1 for a plain JPEG whose data libjpeg decodes without a warning; 0 for any other, or if it is damaged. */
int is_whole(struct worker *worker, const uint8_t *jpeg, int64_t size) {
    struct jpeg_decompress_struct *info = &worker->info;
    if (setjmp(worker->failed)) {
        jpeg_abort_decompress(info);
        return 0;
    }
    forget_tables(info);
    jpeg_mem_src(info, jpeg, size);
    jpeg_read_header(info, TRUE);
    if (jpeg_has_multiple_scans(info) || !is_common_sampling(info)) fail((j_common_ptr)info);
    jpeg_start_decompress(info);
    if (!is_quantised(info)) fail((j_common_ptr)info);
    entropy_check(worker->entropy, info);
    jpeg_abort_decompress(info);
    return 1;
}
