/* Gathering of JPEGs for the GPU: read samples from their shards into the memory of a batch, undecoded. Only files that begin
 * with the header of the set are gathered; all others, and those that are not as sharding writes them, are left to Python.
 * pipelines/gpu/gather.py calls this through ctypes, which releases Python's lock.
 */

#include <stdlib.h>
#include <string.h>

#include "sample.h"

#define ALIGNED 64 /* bytes; each span or JPEG begins at a multiple of it */

struct place { /* a sample to gather, and its place in memory; PLACE in gather.py has the same layout */
    const char *line;       /* line of the index */
    int32_t length;         /* length of the line */
    int32_t file;           /* file descriptor of the shard, or -1 */
    int64_t at;             /* offset in memory: of its span, or of the JPEG if packed; after gather_samples of the JPEG */
    int32_t size;           /* bytes of the JPEG; 0 if the sample is left to Python */
    int32_t label;
};

/* Return a number for the layout of the structs, as layout() in native.c. */
int gather_layout(void) { return sizeof(struct settings) * 1000 + sizeof(struct place); }

static int64_t aligned(int64_t size) { return (size + ALIGNED - 1) / ALIGNED * ALIGNED; }

/* Give each sample a place in room bytes of memory, one behind the other: for its JPEG alone if packed, else for its whole span
 * of the shard. A sample whose line is damaged, or that does not fit, gets size 0. Return the bytes that are used. */
int64_t place_samples(const struct settings *settings, struct place *places, int32_t count, int32_t packed, int64_t room) {
    struct location location;
    int64_t used = 0;
    for (struct place *place = places; place < places + count; place++) {
        place->at = place->size = place->label = 0;
        if (place->file < 0 || !find_sample(settings, place->line, place->length, &location)) continue;
        int64_t wanted = aligned(packed ? location.size : span_length(&location));
        if (wanted > room - used) continue;
        place->at = used;
        place->size = (int32_t)location.size;
        used += wanted;
    }
    return used;
}

/* Read one sample to its place. Return false if it is left to Python. */
static int gather(const struct settings *settings, const uint8_t *header, int64_t header_bytes, struct place *place,
                  uint8_t *span, uint8_t *memory) {
    struct location location;
    uint8_t *to = span ? span : memory + place->at;
    if (!find_sample(settings, place->line, place->length, &location) || location.size != place->size
        || location.size <= header_bytes || !read_span(settings, &location, place->file, to, &place->label)
        || memcmp(to + BLOCK, header, header_bytes)) return 0;
    if (span) memcpy(memory + place->at, span + BLOCK, location.size);
    else place->at += BLOCK;
    return 1;
}

/* Read the placed samples into memory, compare each with the header of the set, and note their labels. span: memory for any
 * one span if the places are packed, else NULL. Set the size of samples that are left to Python to 0. */
void gather_samples(const struct settings *settings, const uint8_t *header, int64_t header_bytes, struct place *places,
                    int32_t count, uint8_t *span, uint8_t *memory) {
    for (struct place *place = places; place < places + count; place++)
        if (place->size && !gather(settings, header, header_bytes, place, span, memory)) place->size = 0;
}

/* Choose the boxes of count crops from images of side x side pixels; the draws of the next one are stride doubles ahead. Write
 * top and left of each crop to crops, count,3, and top, left, height and width of its box to boxes, count,4. */
void choose_boxes(const struct settings *settings, const double *draws, int64_t stride, int32_t attempts, int32_t count,
                  int64_t *crops, int32_t *boxes) {
    struct box box = {0, 0, 0, 0};
    for (int32_t i = 0; i < count; i++, draws += stride, crops += 3, boxes += 4) {
        int32_t crop_at[2] = {0, 0};
        choose_box(settings, draws, attempts, settings->square, settings->square, crop_at, &box);
        crops[0] = crop_at[0];
        crops[1] = crop_at[1];
        memcpy(boxes, &box, sizeof box);
    }
}
