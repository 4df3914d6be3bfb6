/* Rendering of samples without Python: find a sample in its shard, check it, and decode its crop into the batch, or copy the
 * crop of raw pixels. No rows of a JPEG below the crop are decoded, and few columns beside it.
 *
 * A sample that is not as the sharding tool writes it is left to the Python code, which reports what is wrong with it; so
 * there are no error messages here. native.py calls this through ctypes, which releases Python's lock. README.md has the
 * contract between the two.
 */

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jpeglib.h>

#include "checksum.h"
#include "entropy.h"

#if defined __GLIBC__ && defined __x86_64__ /* the old name of the same function: wheels built today load on glibc 2.28 */
__asm__(".symver exp, exp@GLIBC_2.2.5");
#endif

#define BLOCK 512              /* bytes of a block of a tar file */
#define CHECKSUM 500           /* offset of the checksum in an image's tar header */
#define MAX_SPAN (16 << 20)    /* bytes of an image; larger ones are left to Python */
#define MAX_PIXELS (1 << 26)   /* of an image; larger ones are left to Python */
#define ROWS 4                 /* rows decoded by one call of libjpeg */
#define MARGIN 2               /* pixels around the crop that upsampling of chroma at its edges reads */

enum { RANDOM, RESIZED, CENTER }; /* crops, in the order of native.py */

struct settings { /* the format of the shards and the augmentation; NativeSettings in native.py has the same layout */
    const char *extension;     /* of image members: "jpg" or "npy" */
    const uint8_t *raw_header; /* header of each .npy image */
    int32_t raw_header_bytes;  /* its length; 0 if the images are JPEGs */
    int32_t label_digits, classes;
    int32_t checked;           /* true if the tar headers of images hold checksums to compare */
    int32_t square;            /* side in pixels if all images are square and of one size, else 0 */
    int32_t crop, size;        /* kind of the crop (the enum above) and its side in pixels */
    int32_t shorter;           /* length of the shorter side after resizing, from which random and center crops are cut */
    double most_elongated;     /* largest ratio of longer to shorter side */
    double scale[2], ratio[2], log_ratio[2]; /* least and greatest values of a resized crop */
};

struct sample { /* a sample to render and its result; SAMPLE in native.py has the same layout */
    const char *line;          /* line of the index: EXT START SIZE NAME cls START SIZE NAME */
    int32_t length;            /* length of the line */
    int32_t file;              /* file descriptor of the shard, or -1 */
    int32_t flip;              /* true if the image is to be mirrored left to right */
    /* The result: */
    int32_t done;              /* 1 if rendered, 0 if left to Python */
    int32_t label, crop_at[2]; /* the label; top and left of the crop in the resized image */
    int32_t height, width;     /* size of a crop that Python must still resize; 0 if the pixels are in the batch */
    int64_t at;                /* offset of that crop in the worker's parts: height, width, 4 bytes: RGB and padding */
};

struct box { int32_t top, left, height, width; };

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

struct text { const char *at, *end; };

/* Return the next field of a line, up to a space or the end, and advance the line behind it. */
static struct text next_field(struct text *line) {
    const char *space = memchr(line->at, ' ', line->end - line->at);
    struct text field = {line->at, space ? space : line->end};
    line->at = space ? space + 1 : line->end;
    return field;
}

/* Return the value of a field of 1 to 15 decimal digits; -1 for any other field. */
static int64_t number(struct text field) {
    int64_t value = 0;
    if (field.at == field.end || field.end - field.at > 15) return -1;
    for (; field.at < field.end; field.at++) {
        if (*field.at < '0' || *field.at > '9') return -1;
        value = 10 * value + (*field.at - '0');
    }
    return value;
}

/* Return true if the field equals a string. */
static int equals(struct text field, const char *other) {
    size_t length = strlen(other);
    return (size_t)(field.end - field.at) == length && !memcmp(field.at, other, length);
}

struct location { /* a sample's location in its shard, by the index */
    int64_t start, size, end;     /* offset and length of the image; offset of the end of the label */
    struct text name, label_name; /* names of both members */
};

/* Read the location of a sample from its line of the index. Return false if the line is damaged, or not one that sharding
 * writes: image and label follow each other, with headers of one block, under one key. */
static int find(const struct settings *settings, const struct sample *sample, struct location *location) {
    struct text line = {sample->line, sample->line + sample->length};
    struct text extension = next_field(&line);
    location->start = number(next_field(&line));
    location->size = number(next_field(&line));
    location->name = next_field(&line);
    struct text cls = next_field(&line);
    int64_t label_start = number(next_field(&line));
    int64_t label_size = number(next_field(&line));
    location->label_name = next_field(&line);
    location->end = label_start + label_size;
    int64_t stem = (location->name.end - location->name.at) - (extension.end - extension.at);
    return line.at == line.end && equals(extension, settings->extension) && equals(cls, "cls")
        && location->start >= BLOCK && location->size >= 1 && location->size < MAX_SPAN
        && label_start == location->start + (location->size + BLOCK - 1) / BLOCK * BLOCK + BLOCK
        && label_size == settings->label_digits
        && stem > 0 && location->label_name.end - location->label_name.at == stem + 3
        && !memcmp(location->label_name.at, location->name.at, stem) && !memcmp(location->label_name.at + stem, "cls", 3);
}

/* Return true if a block of the shard is the tar header of a regular file of that name and size. */
static int is_header(const uint8_t *block, struct text name, int64_t size) {
    char digits[13];
    int64_t length = name.end - name.at;
    if (length < 1 || length > 100 || *name.at == '.' || memchr(name.at, '/', length)) return 0;
    snprintf(digits, sizeof digits, "%011o", (unsigned)size);
    for (int64_t i = length; i < 100; i++)
        if (block[i]) return 0;
    return !memcmp(block, name.at, length) && !memcmp(block + 124, digits, 12);
}

/* Return true if the image's header holds the checksum of what follows it, as records.py has it. */
static int has_checksum(const uint8_t *span, int64_t length) {
    char digits[9];
    snprintf(digits, sizeof digits, "%08x", (unsigned)checksum(span + BLOCK, length - BLOCK));
    return !memcmp(span + CHECKSUM, digits, 8);
}

/* Read the sample's span of its shard, from the image's header to the label's end, and its label. Return false unless the
 * headers agree with the index, the label is a class and the checksum, if there is one, is right. */
static int read_sample(struct worker *worker, const struct settings *settings, struct sample *sample,
                       const struct location *location) {
    int64_t length = location->end - location->start + BLOCK;
    if (!grow(&worker->span, &worker->span_room, length)) return 0;
    if (pread(sample->file, worker->span, length, location->start - BLOCK) != length) return 0;
    const char *digits = (const char *)worker->span + length - settings->label_digits;
    const uint8_t *label_header = (const uint8_t *)digits - BLOCK;
    int64_t label = number((struct text){digits, digits + settings->label_digits});
    sample->label = (int32_t)label;
    return is_header(worker->span, location->name, location->size)
        && is_header(label_header, location->label_name, settings->label_digits)
        && label >= 0 && label < settings->classes
        && (!settings->checked || has_checksum(worker->span, length));
}

static int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
static int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

/* Return the box of a random resized crop. From here to choose all results are bit-identical to those of crops.py: the same
 * operations in the same order in double precision, rint for Python's round, and no fused multiply-add (setup.py). */
static struct box resized_box(const struct settings *settings, const double *draws, int32_t attempts, int32_t height,
                              int32_t width) {
    const double *scale = settings->scale, *ratio = settings->ratio, *log_ratio = settings->log_ratio;
    for (; attempts > 0; attempts--, draws += 4) {
        double area = (double)height * width * (scale[0] + draws[0] * (scale[1] - scale[0]));
        double chosen = exp(log_ratio[0] + draws[1] * (log_ratio[1] - log_ratio[0]));
        double w = rint(sqrt(area * chosen)), h = rint(sqrt(area / chosen));
        if (0 < w && w <= width && 0 < h && h <= height)
            return (struct box){(int32_t)(draws[2] * (height - h + 1)), (int32_t)(draws[3] * (width - w + 1)), h, w};
    }
    int32_t w = (int32_t)fmin(width, rint(height * ratio[1])), h = (int32_t)fmin(height, rint(width / ratio[0]));
    return (struct box){(height - h) / 2, (width - w) / 2, h, w};
}

/* Return the length of a side after the shortest side is resized to wanted: one side of shorter_sides in crops.py. */
static int32_t resized_side(int32_t side, int32_t shortest, int32_t wanted) {
    return shortest == wanted ? side : larger(wanted, (int32_t)rint(side * ((double)wanted / shortest)));
}

/* Map one side of a box from the resized image back to the image: one side of in_source in crops.py. */
static void in_source(int32_t *start, int32_t *length, int32_t side, int32_t resized) {
    *length = smaller(side, larger(1, (int32_t)rint((double)((int64_t)*length * side) / resized)));
    *start = smaller((int32_t)rint((double)((int64_t)*start * side) / resized), side - *length);
}

/* Choose the box of the image to decode, and note where the image is cropped. Return false if the whole image would be
 * needed: a center crop of an image that must be resized first. */
static int choose(const struct settings *settings, const double *draws, int32_t attempts, int32_t height, int32_t width,
                  struct sample *sample, struct box *box) {
    int32_t size = settings->size, shortest = smaller(height, width);
    if (settings->crop == RESIZED) {
        *box = resized_box(settings, draws, attempts, height, width);
        sample->crop_at[0] = sample->crop_at[1] = 0;
        return 1;
    }
    int32_t h = resized_side(height, shortest, settings->shorter), w = resized_side(width, shortest, settings->shorter);
    int same = h == height && w == width;
    if (settings->crop == CENTER) {
        if (!same) return 0;
        *box = (struct box){(h - size + 1) / 2, (w - size + 1) / 2, size, size};
    } else {
        *box = (struct box){(int32_t)(draws[0] * (h - size + 1)), (int32_t)(draws[1] * (w - size + 1)), size, size};
    }
    sample->crop_at[0] = box->top;
    sample->crop_at[1] = box->left;
    if (!same) {
        in_source(&box->top, &box->height, height, h);
        in_source(&box->left, &box->width, width, w);
    }
    return 1;
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
        || !choose(settings, draws, attempts, height, width, sample, &box)) fail((j_common_ptr)info);

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
        || !choose(settings, draws, attempts, side, side, sample, &box)
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
        if (!find(settings, sample, &location) || !read_sample(worker, settings, sample, &location)) continue;
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
