/* Samples in their shards, and the boxes of their crops: sample.c. What rendering (native.c) and gathering (gather.c) share. */

#include <stddef.h>
#include <stdint.h>

#define BLOCK 512              /* bytes of a block of a tar file */
#define MAX_SPAN (16 << 20)    /* bytes of an image; larger ones are left to Python */

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

struct text { const char *at, *end; };

struct location { /* a sample's location in its shard, by the index */
    int64_t start, size, end;     /* offset and length of the image; offset of the end of the label */
    struct text name, label_name; /* names of both members */
};

/* Read the location of a sample from its line of the index. Return false if the line is damaged, or not one that sharding
 * writes: image and label follow each other, with headers of one block, under one key. */
int find_sample(const struct settings *settings, const char *line, int32_t length, struct location *location);

/* Return the bytes of a sample's span of its shard, from the image's header to the label's end. The image is BLOCK behind
 * its beginning. */
int64_t span_length(const struct location *location);

/* Read the span of a sample and its label. Return false unless the headers agree with the index, the label is a class and
 * the checksum, if there is one, is right. */
int read_span(const struct settings *settings, const struct location *location, int32_t file, uint8_t *span, int32_t *label);

/* Choose the box of the image to decode, and the top and left of the crop in the resized image. Return false if the whole
 * image would be needed: a center crop of an image that must be resized first. */
int choose_box(const struct settings *settings, const double *draws, int32_t attempts, int32_t height, int32_t width,
               int32_t crop_at[2], struct box *box);
