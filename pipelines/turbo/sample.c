/* Samples without Python: find one in its shard by its line of the index, read it, check it, and choose the box of its crop.
 * A sample that is not as the sharding tool writes it is left to the Python code, which reports what is wrong with it.
 */

#include <math.h>
#include <string.h>
#include <unistd.h>

#include "checksum.h"
#include "sample.h"

#if defined __GLIBC__ && defined __x86_64__ /* the old name of the same function: wheels built today load on glibc 2.28 */
__asm__(".symver exp, exp@GLIBC_2.2.5");
#endif

#define CHECKSUM 500           /* offset of the checksum in an image's tar header */

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

int find_sample(const struct settings *settings, const char *start, int32_t length, struct location *location) {
    struct text line = {start, start + length};
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

/* Return true if the text is this value in digits of a base of 1 << bits, with leading zeros. */
static int is_number(const uint8_t *text, int digits, int bits, uint64_t value) {
    while (digits-- > 0) {
        if (text[digits] != "0123456789abcdef"[value & ((1u << bits) - 1)]) return 0;
        value >>= bits;
    }
    return value == 0;
}

/* Return true if a block of the shard is the tar header of a regular file of that name and size. */
static int is_header(const uint8_t *block, struct text name, int64_t size) {
    static const uint8_t zeros[100];
    int64_t length = name.end - name.at;
    if (length < 1 || length > 100 || *name.at == '.' || memchr(name.at, '/', length)) return 0;
    return !memcmp(block, name.at, length) && !memcmp(block + length, zeros, 100 - length)
        && is_number(block + 124, 11, 3, size) && !block[135];
}

/* Return true if the image's header holds the checksum of what follows it, as records.py has it. */
static int has_checksum(const uint8_t *span, int64_t length) {
    return is_number(span + CHECKSUM, 8, 4, checksum(span + BLOCK, length - BLOCK));
}

int64_t span_length(const struct location *location) { return location->end - location->start + BLOCK; }

int read_span(const struct settings *settings, const struct location *location, int32_t file, uint8_t *span, int32_t *label) {
    int64_t length = span_length(location);
    if (pread(file, span, length, location->start - BLOCK) != length) return 0;
    const char *digits = (const char *)span + length - settings->label_digits;
    const uint8_t *label_header = (const uint8_t *)digits - BLOCK;
    *label = (int32_t)number((struct text){digits, digits + settings->label_digits});
    return is_header(span, location->name, location->size)
        && is_header(label_header, location->label_name, settings->label_digits)
        && *label >= 0 && *label < settings->classes
        && (!settings->checked || has_checksum(span, length));
}

static int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
static int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

/* Return the box of a random resized crop. From here to choose_box all results are bit-identical to those of crops.py: the same
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

int choose_box(const struct settings *settings, const double *draws, int32_t attempts, int32_t height, int32_t width,
               int32_t crop_at[2], struct box *box) {
    int32_t size = settings->size, shortest = smaller(height, width);
    if (settings->crop == RESIZED) {
        *box = resized_box(settings, draws, attempts, height, width);
        crop_at[0] = crop_at[1] = 0;
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
    crop_at[0] = box->top;
    crop_at[1] = box->left;
    if (!same) {
        in_source(&box->top, &box->height, height, h);
        in_source(&box->left, &box->width, width, w);
    }
    return 1;
}
