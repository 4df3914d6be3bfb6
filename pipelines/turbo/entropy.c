/* Huffman decoding of baseline JPEGs in place of libjpeg's: in seven tenths of its time, and only of what is wanted.
 *
 * Decoding waits for one thing above all: how long a code is, before which the next one cannot be looked up. So one look at
 * a table tells where the next two codes and their values end. Eight bytes are loaded at once, as the zeros that are stuffed
 * behind bytes of ones were taken out before. What stands between two restart markers beside the wanted part of the image is
 * passed over unread.
 *
 * The same coefficients as libjpeg's, which makes pixels of them; what libjpeg would warn of is an error. ITU-T T.81,
 * annexes C and F.2.2.
 */

#include <stdlib.h>
#include <string.h>

#include "entropy.h"

#define LOOK 11                  /* bits that are looked up at once: tables of 8 KB, which stay in the cache */
#define LONGEST (64 * 4)         /* bytes of a block, at the very most: 64 codes and values of 32 bits */
#define LIKELY(x) __builtin_expect(!!(x), 1)

struct jpeg_entropy_decoder { /* as it begins in libjpeg's jpegint.h, which is seldom installed, since the sixth version */
    void (*start_pass)(j_decompress_ptr info);
    boolean (*decode_mcu)(j_decompress_ptr info, JBLOCKROW *blocks);
};

/* A step is what the next bits say: a code and its value, then perhaps another code and its value, or the block's end. In 32
 * bits (gcc makes slower code of bit-fields): */
#define BITS(step) ((step) & 63)       /* of all that; 0 where the first code is longer than LOOK */
#define SIZE(step) ((step) >> 6 & 15)  /* of the first value, in bits; ZRL and EOB have none */
#define RUN(step) ((step) >> 10 & 15)  /* zeros before it */
#define AT(step) ((step) >> 14 & 15)   /* where its bits begin */
#define SIZE2(step) ((step) >> 18 & 15)
#define AT2(step) ((step) >> 22 & 15)
#define AHEAD(step) ((step) >> 26 & 31) /* from the first to the second, which is the first once more if there is none: 0 */
#define END(step) ((step) >> 31)

struct codes { /* of a Huffman table */
    JHUFF_TBL table;             /* which all else is made of */
    uint32_t steps[1 << LOOK];
    int32_t above[17];           /* by length: what no code of that length, as a number, reaches */
    int32_t offset[17];          /* from a code to its symbol's place in the table */
};

struct reader {
    const uint8_t *next;
    uint64_t held;               /* the bits that come next, the first one topmost */
    int32_t left;                /* how many of them are known to be held */
};

struct entropy {
    struct codes dc[NUM_HUFF_TBLS], ac[NUM_HUFF_TBLS];
    const uint8_t *coded, *coded_end; /* what is left of the scan */
    int32_t top, bottom, left, right; /* MCUs that are wanted */
    int32_t unit;                /* MCUs that were asked for */
    int32_t pieces;              /* what stands between two restart markers; begun */
    int32_t left_in_piece;       /* MCUs */
    int32_t passed_over;         /* the piece is not wanted */
    int32_t last[MAX_COMPS_IN_SCAN]; /* each component's DC value */
    struct reader reader;
    uint8_t *bytes, *bytes_end;  /* of the piece, without what is stuffed */
    size_t room;
};

struct entropy *entropy_new(void) { return calloc(1, sizeof(struct entropy)); }

void entropy_free(struct entropy *entropy) {
    if (entropy) free(entropy->bytes);
    free(entropy);
}

static void fail(j_decompress_ptr info) { info->err->error_exit((j_common_ptr)info); }

/* A step's first value, without its place. */
static uint32_t step_of(uint32_t bits, uint32_t symbol) { return bits | (symbol & 15) << 6 | symbol >> 4 << 10; }

/* Of the next LOOK bits, and the symbols and the codes' lengths that begin with such bits; length 0 where no code ends in
 * them. */
static uint32_t make_step(uint32_t next, const uint8_t *symbols, const uint8_t *lengths, int of_ac) {
    uint32_t length = lengths[next], symbol = symbols[next], size = symbol & 15, bits = length + size;
    uint32_t alone = step_of(bits, symbol) | length << 14 | size << 18 | length << 22;
    if (!of_ac || !length || !size || bits >= LOOK) return alone;
    uint32_t after = next << bits & ((1 << LOOK) - 1), length2 = lengths[after], symbol2 = symbols[after];
    uint32_t run2 = symbol2 >> 4, size2 = symbol2 & 15, at2 = bits + length2;
    if (!length2 || at2 > LOOK) return alone;
    if (size2) return step_of(at2 + size2, symbol) | length << 14 | size2 << 18 | at2 << 22 | (run2 + 1) << 26;
    if (run2 < 15) return step_of(at2, symbol) | length << 14 | size << 18 | length << 22 | 1u << 31;
    return alone;
}

/* libjpeg has seen that the table can be one. */
static void prepare(struct codes *codes, const JHUFF_TBL *table, int of_ac) {
    if (!memcmp(codes->table.bits, table->bits, sizeof table->bits)
        && !memcmp(codes->table.huffval, table->huffval, sizeof table->huffval)) return; /* most files have the same */
    codes->table = *table;
    uint8_t symbols[1 << LOOK] = {0}, lengths[1 << LOOK] = {0};
    int32_t code = 0, place = 0;
    for (int32_t length = 1; length <= 16; length++, code <<= 1) {
        codes->offset[length] = place - code;
        for (int32_t i = 0; i < table->bits[length]; i++, code++, place++) {
            int32_t spare = LOOK - length; /* bits of a look that may be any */
            if (spare < 0) continue;
            memset(symbols + (code << spare), table->huffval[place], 1 << spare);
            memset(lengths + (code << spare), length, 1 << spare);
        }
        codes->above[length] = code;
    }
    for (uint32_t next = 0; next < 1 << LOOK; next++) codes->steps[next] = make_step(next, symbols, lengths, of_ac);
}

/* Of a code of more than LOOK bits; 0 where there is no such code. */
static uint32_t long_step(const struct codes *codes, uint64_t held) {
    for (int32_t length = LOOK + 1; length <= 16; length++) {
        int32_t code = held >> (64 - length);
        if (code < codes->above[length]) {
            uint8_t symbol = codes->table.huffval[code + codes->offset[length]];
            return step_of(length + (symbol & 15), symbol);
        }
    }
    return 0;
}

/* After it 56 bits are held, or more. */
static inline void refill(struct reader *reader) {
    uint64_t loaded;
    memcpy(&loaded, reader->next, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    loaded = __builtin_bswap64(loaded);
#endif
    reader->held |= loaded >> reader->left;
    reader->next += (63 - reader->left) >> 3;
    reader->left |= 56;
}

static inline void take(struct reader *reader, uint32_t bits) {
    reader->held <<= bits;
    reader->left -= bits;
}

/* The number that bits begin with, of 1 to 15 bits: where the first is 0, minus what it is with every bit turned over. */
static inline int32_t number_in(uint64_t bits, uint32_t size) {
    uint64_t turn = bits >> 63 ? 0 : UINT64_MAX;
    return (int32_t)(((bits ^ turn) >> (64 - size) ^ turn) - turn);
}

/* Into a block of zeros, or kept nowhere. Are all its codes known ones? */
static inline __attribute__((always_inline)) int decode_block(struct reader *reader_kept, const struct codes *dc,
                                                              const struct codes *ac, int32_t *last, int kept,
                                                              JCOEFPTR block) {
    /* Coefficients' places; runs may lead beyond the last, as in libjpeg. */
    static const uint8_t places[64 + 16] = {
        0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,
        6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31,
        39, 46, 53, 60, 61, 54, 47, 55, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63};
    struct reader reader = *reader_kept;
    const uint32_t *steps = ac->steps;

    refill(&reader);
    uint32_t step = dc->steps[reader.held >> (64 - LOOK)];
    if (!step) step = long_step(dc, reader.held);
    if (!step) return 0;
    int32_t more = SIZE(step) ? number_in(reader.held << (BITS(step) - SIZE(step)), SIZE(step)) : 0;
    *last = (int32_t)((uint32_t)*last + (uint32_t)more);
    if (kept) block[0] = (JCOEF)*last;
    take(&reader, BITS(step));

    for (int32_t k = 1; k < 64; k++) {
        refill(&reader);
        step = steps[reader.held >> (64 - LOOK)];
        if (LIKELY(SIZE(step))) {
            k += RUN(step);
            if (kept) block[places[k]] = (JCOEF)number_in(reader.held << AT(step), SIZE(step));
            if (LIKELY(k < 63)) {
                k += AHEAD(step);
                if (kept) block[places[k]] = (JCOEF)number_in(reader.held << AT2(step), SIZE2(step));
                take(&reader, BITS(step));
                if (END(step)) break;
            } else {
                take(&reader, AT(step) + SIZE(step)); /* what follows is of the next block */
            }
        } else {
            if (!step) step = long_step(ac, reader.held);
            if (!step) return 0;
            k += RUN(step);
            if (kept && SIZE(step))
                block[places[k]] = (JCOEF)number_in(reader.held << (BITS(step) - SIZE(step)), SIZE(step));
            take(&reader, BITS(step));
            if (!SIZE(step) && RUN(step) < 15) break;
        }
    }
    *reader_kept = reader;
    return 1;
}

/* Whether any of these MCUs is. */
static int are_wanted(const struct entropy *entropy, int32_t first, int32_t count, int32_t in_a_row) {
    int32_t last = first + count - 1, top = first / in_a_row, bottom = last / in_a_row;
    if (bottom < entropy->top || top >= entropy->bottom) return 0;
    return top < bottom || (last - top * in_a_row >= entropy->left && first - top * in_a_row < entropy->right);
}

/* What stands from here to the next marker. Is there one, and does the right one stand here? */
static int begin_piece(struct entropy *entropy) {
    const uint8_t *from = entropy->coded, *stop;
    uint8_t *to = entropy->bytes;
    if (entropy->pieces > 0) {
        if (from[0] != 0xFF || from[1] != JPEG_RST0 + (entropy->pieces - 1) % 8) return 0;
        from += 2;
    }
    entropy->pieces++;
    for (;;) {
        stop = memchr(from, 0xFF, entropy->coded_end - from);
        if (!stop || stop + 1 == entropy->coded_end) return 0;
        if (!entropy->passed_over) memcpy(to, from, stop - from + 1);
        to += stop - from + 1;
        if (stop[1]) break;
        from = stop + 2;
    }
    entropy->coded = stop;
    entropy->bytes_end = to - 1;
    entropy->reader = (struct reader){entropy->bytes, 0, 0};
    if (!entropy->passed_over) memset(entropy->bytes_end, 0, LONGEST + 8);
    memset(entropy->last, 0, sizeof entropy->last);
    return 1;
}

static int64_t unread_bits(const struct entropy *entropy) {
    return (entropy->bytes_end - entropy->reader.next) * 8 + entropy->reader.left;
}

/* Stands for libjpeg's own: the next MCU in the order of the scan. */
static boolean decode_mcu(j_decompress_ptr info, JBLOCKROW *blocks) {
    struct entropy *entropy = info->client_data;
    int32_t in_a_row = info->MCUs_per_row, unit = entropy->unit++;
    if (unit >= entropy->bottom * in_a_row) return TRUE;
    if (!entropy->left_in_piece) {
        int32_t to_go = in_a_row * info->MCU_rows_in_scan - unit, interval = info->restart_interval;
        entropy->left_in_piece = interval && interval < to_go ? interval : to_go;
        entropy->passed_over = !are_wanted(entropy, unit, entropy->left_in_piece, in_a_row);
        if (!begin_piece(entropy)) fail(info);
    }
    entropy->left_in_piece--;
    if (entropy->passed_over) return TRUE;
    int wanted = blocks && are_wanted(entropy, unit, 1, in_a_row);
    for (int32_t i = 0; i < info->blocks_in_MCU; i++) {
        int32_t number = info->MCU_membership[i];
        const jpeg_component_info *component = info->cur_comp_info[number];
        const struct codes *dc = &entropy->dc[component->dc_tbl_no], *ac = &entropy->ac[component->ac_tbl_no];
        int32_t *last = &entropy->last[number];
        int known = wanted ? decode_block(&entropy->reader, dc, ac, last, 1, *blocks[i])
                           : decode_block(&entropy->reader, dc, ac, last, 0, NULL);
        if (!known || unread_bits(entropy) < 0) fail(info);
    }
    if (!entropy->left_in_piece && unread_bits(entropy) >= 8) fail(info);
    return TRUE;
}

void entropy_replace(struct entropy *entropy, j_decompress_ptr info, int32_t top, int32_t bottom, int32_t left,
                     int32_t right) {
    int alone = info->comps_in_scan == 1; /* T.81 A.2.2: sampling factors mean nothing then */
    int32_t height = DCTSIZE * (alone ? 1 : info->max_v_samp_factor);
    int32_t width = DCTSIZE * (alone ? 1 : info->max_h_samp_factor);
    size_t coded = info->src->bytes_in_buffer, wanted = coded + LONGEST + 8;
    if (entropy->room < wanted) {
        free(entropy->bytes);
        entropy->bytes = malloc(wanted);
        entropy->room = entropy->bytes ? wanted : 0;
    }
    if (!entropy->room || info->progressive_mode || info->arith_code) fail(info);
    for (int32_t i = 0; i < info->comps_in_scan; i++) {
        int32_t dc = info->cur_comp_info[i]->dc_tbl_no, ac = info->cur_comp_info[i]->ac_tbl_no;
        if (!info->dc_huff_tbl_ptrs[dc] || !info->ac_huff_tbl_ptrs[ac]) fail(info); /* lossless JPEGs have no AC tables */
        prepare(&entropy->dc[dc], info->dc_huff_tbl_ptrs[dc], 0);
        prepare(&entropy->ac[ac], info->ac_huff_tbl_ptrs[ac], 1);
    }
    entropy->coded = info->src->next_input_byte;
    entropy->coded_end = entropy->coded + coded;
    entropy->top = top / height;
    entropy->bottom = (bottom + height - 1) / height;
    entropy->left = left / width;
    entropy->right = (right + width - 1) / width;
    entropy->unit = entropy->pieces = entropy->left_in_piece = 0;
    info->client_data = entropy;
    info->entropy->decode_mcu = decode_mcu;
}

void entropy_check(struct entropy *entropy, j_decompress_ptr info) {
    entropy_replace(entropy, info, 0, info->image_height, 0, info->image_width);
    for (JDIMENSION left = info->MCUs_per_row * info->MCU_rows_in_scan; left > 0; left--) decode_mcu(info, NULL);
}
