/* What turbo does to most samples, without Python: found in their shard, checked, and the part of the JPEG that is wanted
 * decoded to where it belongs. No rows below that part are decoded, and few columns beside it.
 *
 * Whatever is not as the sharding tool writes it is left to the Python code, which says what is wrong with it; so nothing
 * here explains itself. native.py calls it through ctypes, which lets go of Python's lock.
 */

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jpeglib.h>

#define BLOCK 512              /* of a tar file */
#define MAX_SPAN (16 << 20)    /* bytes of a sample in its shard */
#define MAX_PIXELS (1 << 26)   /* of an image */
#define ROWS 4                 /* decoded at a time */
#define MARGIN 2               /* columns beside the part, from which its edges are interpolated */

struct sample { /* the same in native.py */
    /* read_samples is told: */
    const char *line;          /* of the index: EXT START SIZE NAME cls START SIZE NAME */
    const char *extension;     /* that the shards have */
    int32_t length;            /* of the line */
    int32_t file;              /* the open shard */
    int32_t label_digits, classes;
    int32_t square;            /* pixels a side, where all images are such; else 0 */
    /* and finds: */
    int32_t label, height, width; /* height 0: left to Python */
    int32_t size;              /* of the JPEG */
    int64_t at;                /* in the worker's spans: the tar header before it */
    /* decode_parts is told: */
    int32_t shrink;            /* 1, 2, 4 or 8: the image is decoded at that part of its size */
    int32_t top, left, part_height, part_width; /* once it is shrunk */
    int32_t flip, channels;    /* 3, or 4: RGB and nothing */
    int32_t done;              /* and says so */
    uint8_t *out;              /* part_height, part_width, channels */
};

struct worker {
    struct jpeg_decompress_struct info; /* first, so that libjpeg's functions find the rest */
    struct jpeg_error_mgr errors;
    jmp_buf failed;
    uint8_t *spans, *rows;
    size_t spans_room, rows_room;
};

static void fail(j_common_ptr info) { longjmp(((struct worker *)info)->failed, 1); }

static void fail_on_warning(j_common_ptr info, int level) {
    if (level < 0) fail(info);
}

struct worker *worker_new(void) {
    struct worker *worker = calloc(1, sizeof *worker);
    if (!worker) return NULL;
    worker->info.err = jpeg_std_error(&worker->errors);
    worker->errors.error_exit = fail;
    worker->errors.emit_message = fail_on_warning;
    if (setjmp(worker->failed)) return NULL; /* another libjpeg than it was built for */
    jpeg_create_decompress(&worker->info);
    return worker;
}

void worker_free(struct worker *worker) {
    jpeg_destroy_decompress(&worker->info);
    free(worker->spans);
    free(worker->rows);
    free(worker);
}

static int grow(uint8_t **memory, size_t *room, size_t wanted) {
    if (*room >= wanted) return 1;
    free(*memory);
    *memory = malloc(wanted);
    *room = *memory ? wanted : 0;
    return *memory != NULL;
}

struct text { const char *at, *end; };

static struct text next_field(struct text *line) {
    const char *space = memchr(line->at, ' ', line->end - line->at);
    struct text field = {line->at, space ? space : line->end};
    line->at = space ? space + 1 : line->end;
    return field;
}

static int64_t number(struct text field) {
    int64_t value = 0;
    if (field.at == field.end || field.end - field.at > 15) return -1;
    for (; field.at < field.end; field.at++) {
        if (*field.at < '0' || *field.at > '9') return -1;
        value = 10 * value + (*field.at - '0');
    }
    return value;
}

static int equals(struct text field, const char *other) {
    size_t length = strlen(other);
    return (size_t)(field.end - field.at) == length && !memcmp(field.at, other, length);
}

struct place { int64_t start, size, end; struct text name, label_name; }; /* from the image's first byte to the label's last */

/* Where the index says that a sample lies. */
static int find(const struct sample *sample, struct place *place) {
    struct text line = {sample->line, sample->line + sample->length};
    struct text extension = next_field(&line);
    place->start = number(next_field(&line));
    place->size = number(next_field(&line));
    place->name = next_field(&line);
    struct text cls = next_field(&line);
    int64_t label_start = number(next_field(&line));
    int64_t label_size = number(next_field(&line));
    place->label_name = next_field(&line);
    place->end = label_start + label_size;
    int64_t stem = (place->name.end - place->name.at) - (extension.end - extension.at);
    return line.at == line.end && equals(extension, sample->extension) && equals(cls, "cls")
        && place->start >= BLOCK && place->size >= 1 && place->size < MAX_SPAN
        && label_start == place->start + (place->size + BLOCK - 1) / BLOCK * BLOCK + BLOCK
        && label_size == sample->label_digits
        && stem > 0 && place->label_name.end - place->label_name.at == stem + 3
        && !memcmp(place->label_name.at, place->name.at, stem) && !memcmp(place->label_name.at + stem, "cls", 3);
}

/* Whether a block of the shard is the header of a regular file of that name and size. */
static int is_header(const uint8_t *block, struct text name, int64_t size) {
    char digits[13];
    int64_t length = name.end - name.at;
    if (length < 1 || length > 100 || *name.at == '.' || memchr(name.at, '/', length)) return 0;
    snprintf(digits, sizeof digits, "%011o", (unsigned)size);
    for (int64_t i = length; i < 100; i++)
        if (block[i]) return 0;
    return !memcmp(block, name.at, length) && !memcmp(block + 124, digits, 12);
}

static int read_image_size(struct worker *worker, struct sample *sample) {
    struct jpeg_decompress_struct *info = &worker->info;
    if (setjmp(worker->failed)) {
        jpeg_abort_decompress(info);
        return 0;
    }
    jpeg_mem_src(info, worker->spans + sample->at + BLOCK, sample->size);
    jpeg_read_header(info, TRUE);
    int fits = (int64_t)info->image_height * info->image_width <= MAX_PIXELS && !jpeg_has_multiple_scans(info);
    sample->height = fits ? (int32_t)info->image_height : 0;
    sample->width = (int32_t)info->image_width;
    jpeg_abort_decompress(info);
    return fits;
}

static int read_sample(struct worker *worker, struct sample *sample, const struct place *place) {
    uint8_t *span = worker->spans + sample->at;
    int64_t length = place->end - place->start + BLOCK;
    if (pread(sample->file, span, length, place->start - BLOCK) != length) return 0;
    const char *digits = (const char *)span + length - sample->label_digits;
    const uint8_t *label_header = (const uint8_t *)digits - BLOCK;
    int64_t label = number((struct text){digits, digits + sample->label_digits});
    sample->size = (int32_t)place->size;
    sample->label = (int32_t)label;
    sample->height = sample->width = sample->square;
    return is_header(span, place->name, place->size) && is_header(label_header, place->label_name, sample->label_digits)
        && label >= 0 && label < sample->classes && (sample->square || read_image_size(worker, sample));
}

/* Finds the samples, reads them into the worker's memory, checks them, and tells labels and sizes. */
void read_samples(struct worker *worker, struct sample *samples, int count) {
    struct place places[count];
    int64_t wanted = 0;
    for (int i = 0; i < count; i++) {
        samples[i].height = 0;
        samples[i].at = find(&samples[i], &places[i]) ? wanted : -1;
        if (samples[i].at >= 0) wanted += places[i].end - places[i].start + BLOCK;
    }
    if (!grow(&worker->spans, &worker->spans_room, wanted)) return;
    for (int i = 0; i < count; i++)
        if (samples[i].at >= 0 && !read_sample(worker, &samples[i], &places[i])) samples[i].height = 0;
}

#if defined __has_builtin && defined __x86_64__ && defined __linux__
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES
#endif
#endif

#ifdef SHUFFLES /* a third of the time */
typedef uint8_t pixels_t __attribute__((vector_size(16)));

/* Four pixels at a time of four bytes to three, for as long as there is room for a fourth; how many were done? */
__attribute__((target_clones("ssse3", "default")))
static int mirror_fours(uint8_t *out, const uint8_t *row, int width) {
    int done = 0;
    for (; width - done >= 6; done += 4) {
        pixels_t four;
        memcpy(&four, row + 4 * (width - done - 4), 16);
        four = __builtin_shufflevector(four, four, 12, 13, 14, 8, 9, 10, 4, 5, 6, 0, 1, 2, 3, 3, 3, 3);
        memcpy(out + 3 * done, &four, 16);
    }
    return done;
}
#else
static int mirror_fours(uint8_t *out, const uint8_t *row, int width) { return 0; }
#endif

/* width pixels of four bytes, the last one first; what is written too far is written over by the next. */
static void mirror(uint8_t *out, const uint8_t *row, int width, int channels) {
    int done = channels == 3 ? mirror_fours(out, row, width) : 0;
    for (; done < width - 1; done++) memcpy(out + channels * done, row + 4 * (width - 1 - done), 4);
    memcpy(out + channels * done, row, channels);
}

static void decode_part(struct worker *worker, struct sample *sample) {
    struct jpeg_decompress_struct *info = &worker->info;
    int stored = sample->flip ? 4 : sample->channels; /* four bytes are mirrored at once */
    if (setjmp(worker->failed)) {
        jpeg_abort_decompress(info);
        return;
    }
    jpeg_mem_src(info, worker->spans + sample->at + BLOCK, sample->size);
    jpeg_read_header(info, TRUE);
    if ((int)info->image_height != sample->height || (int)info->image_width != sample->width
        || jpeg_has_multiple_scans(info)) fail((j_common_ptr)info); /* each scan may take as long as the whole image */
    info->out_color_space = stored == 4 ? JCS_EXT_RGBX : JCS_EXT_RGB;
    info->scale_num = 1;
    info->scale_denom = sample->shrink;
    jpeg_start_decompress(info);

    JDIMENSION first = sample->left > MARGIN ? sample->left - MARGIN : 0;
    JDIMENSION columns = sample->left + sample->part_width + MARGIN - first;
    if (first + columns > info->output_width) columns = info->output_width - first;
    jpeg_crop_scanline(info, &first, &columns);

    /* Rows begin half way between two multiples of 32 bytes: to a multiple libjpeg-turbo writes around the cache, and they
     * would come back from main memory, which takes a tenth of all the time. */
    size_t stride = ((size_t)stored * info->output_width + 31) / 32 * 32;
    if (!grow(&worker->rows, &worker->rows_room, ROWS * stride + 64)) fail((j_common_ptr)info);
    uint8_t *begin = worker->rows + (16 - (uintptr_t)worker->rows % 32 + 32) % 32;
    JSAMPROW rows[ROWS];
    for (int i = 0; i < ROWS; i++) rows[i] = begin + i * stride;

    if (sample->top > 0) jpeg_skip_scanlines(info, sample->top);
    uint8_t *out = sample->out;
    size_t row_bytes = (size_t)sample->part_width * sample->channels;
    for (int left = sample->part_height; left > 0;) {
        int read = jpeg_read_scanlines(info, rows, left < ROWS ? left : ROWS);
        if (read < 1) fail((j_common_ptr)info);
        for (int i = 0; i < read; i++, left--, out += row_bytes) {
            const uint8_t *row = rows[i] + (size_t)stored * (sample->left - first);
            if (sample->flip) mirror(out, row, sample->part_width, sample->channels);
            else memcpy(out, row, row_bytes);
        }
    }
    jpeg_abort_decompress(info);
    sample->done = 1;
}

/* The wanted parts of samples that read_samples has read. */
void decode_parts(struct worker *worker, struct sample *samples, int count) {
    for (int i = 0; i < count; i++) {
        samples[i].done = 0;
        if (samples[i].height > 0) decode_part(worker, &samples[i]);
    }
}
