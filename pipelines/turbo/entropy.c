/* Huffman decoding of baseline JPEGs in place of libjpeg's: in seven tenths of its time, and only as far as a crop needs.
 *
 * The bottleneck is one dependency: the next code cannot be looked up before the length of this one is known. So one
 * look-up gives the ends of the next two codes and of their values. Eight bytes are loaded at once; stuffed zero bytes
 * (B.1.1.5) were removed before. Restart intervals (B.2.1) that lie beside the crop are skipped without decoding.
 *
 * The coefficients are the same as libjpeg's, which makes the pixels from them. Data that libjpeg would warn of is an
 * error here. Sections are those of ITU-T T.81 (1992); most of the work is annex C and section F.2.2.
 */

#include <stdlib.h>
#include <string.h>

#include "entropy.h"

#define LOOK 11                  /* bits of a look-up: the tables of 8 KB stay in the cache */
#define LONGEST (64 * 4)         /* upper bound of a block's bytes: 64 times a code and a value of 32 bits together */
#define LIKELY(x) __builtin_expect(!!(x), 1)

struct jpeg_entropy_decoder { /* its first members in jpegint.h, which is seldom installed; the same since libjpeg 6 */
    void (*start_pass)(j_decompress_ptr info);
    boolean (*decode_mcu)(j_decompress_ptr info, JBLOCKROW *blocks);
};

/* A step is the meaning of the next bits: a code and its value, perhaps followed by another code and its value, or by the
 * end of the block. A symbol's low four bits are the size of its value, its high four the run of zeros before it (F.1.2.2).
 * A step is packed into 32 bits by hand, because gcc's code for bit-fields is slower: */
#define BITS(step) ((step) & 63)       /* length of all of the step; 0 if the first code is longer than LOOK, or invalid */
#define SIZE(step) ((step) >> 6 & 15)  /* bits of the first value; 0 for ZRL (16 zeros) and EOB (end of block) */
#define RUN(step) ((step) >> 10 & 15)  /* zero coefficients before the first value */
#define AT(step) ((step) >> 14 & 15)   /* offset of the first value's bits */
#define SIZE2(step) ((step) >> 18 & 15) /* the same of the second value; without one, the first value again */
#define AT2(step) ((step) >> 22 & 15)  /* offset of the second value's bits */
#define AHEAD(step) ((step) >> 26 & 31) /* coefficients from the first value to the second; 0 without a second */
#define END(step) ((step) >> 31)       /* EOB follows the first value */

struct codes { /* a Huffman table, prepared for look-ups */
    JHUFF_TBL table;             /* the table as libjpeg read it; the members below are derived from it */
    uint32_t steps[1 << LOOK];   /* the step for each value of the next LOOK bits */
    int32_t above[17];           /* by length: the largest code of that length plus 1; MAXCODE + 1 of F.2.2.3 */
    int32_t offset[17];          /* by length: difference of a symbol's index and its code; VALPTR - MINCODE of F.2.2.3 */
};

struct reader { /* a position in a restart interval's bits */
    const uint8_t *next;         /* the next byte to load */
    uint64_t held;               /* the next bits, first one topmost */
    int32_t left;                /* number of bits in held that are valid; refill may have loaded more, and loads them again */
};

struct entropy {
    struct codes dc[NUM_HUFF_TBLS], ac[NUM_HUFF_TBLS];
    const uint8_t *coded, *coded_end; /* the rest of the scan, with stuffed bytes and restart markers */
    int32_t top, bottom, left, right; /* the crop, in MCUs; bottom and right are exclusive */
    int32_t mcu;                 /* index of the next MCU that libjpeg asks for */
    int32_t intervals;           /* number of restart intervals begun */
    int32_t left_in_interval;    /* MCUs left in the current interval */
    int32_t skipped;             /* true if no MCU of the current interval lies in the crop */
    int32_t last[MAX_COMPS_IN_SCAN]; /* each component's last DC value: PRED of F.2.1.3.1 */
    struct reader reader;
    uint8_t *bytes, *bytes_end;  /* the current interval without stuffed bytes; LONGEST + 8 zero bytes follow it */
    size_t room;                 /* bytes allocated at bytes */
};

struct entropy *entropy_new(void) { return calloc(1, sizeof(struct entropy)); }

void entropy_free(struct entropy *entropy) {
    if (entropy) free(entropy->bytes);
    free(entropy);
}

static void fail(j_decompress_ptr info) { info->err->error_exit((j_common_ptr)info); }

/* Return a step with its length and the run and size of its first value. */
static uint32_t step_of(uint32_t bits, uint32_t symbol) { return bits | (symbol & 15) << 6 | symbol >> 4 << 10; }

/* Return the step for the next LOOK bits. symbols and lengths describe, for each value of LOOK bits, the code that they
 * begin with; the length is 0 if no code ends within them. Steps of a DC table have one code, as AC codes follow it. */
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

/* Make the codes of a Huffman table (C.2) and its look-up tables. The table was already validated by libjpeg. */
static void prepare(struct codes *codes, const JHUFF_TBL *table, int of_ac) {
    if (!memcmp(codes->table.bits, table->bits, sizeof table->bits)
        && !memcmp(codes->table.huffval, table->huffval, sizeof table->huffval)) return; /* most files have the same tables */
    codes->table = *table;
    uint8_t symbols[1 << LOOK] = {0}, lengths[1 << LOOK] = {0};
    int32_t code = 0, place = 0;
    for (int32_t length = 1; length <= 16; length++, code <<= 1) {
        codes->offset[length] = place - code;
        for (int32_t i = 0; i < table->bits[length]; i++, code++, place++) {
            int32_t spare = LOOK - length; /* bits behind the code, which may have any value */
            if (spare < 0) continue;
            memset(symbols + (code << spare), table->huffval[place], 1 << spare);
            memset(lengths + (code << spare), length, 1 << spare);
        }
        codes->above[length] = code;
    }
    for (uint32_t next = 0; next < 1 << LOOK; next++) codes->steps[next] = make_step(next, symbols, lengths, of_ac);
}

/* Return the step of a code longer than LOOK bits: DECODE of F.2.2.3. Return 0 if there is no such code. */
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

/* Load bytes until at least 56 bits are held. They suffice for a step: a code and its value take 16 + 15 bits at most. */
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

/* Consume bits that were used. */
static inline void take(struct reader *reader, uint32_t bits) {
    reader->held <<= bits;
    reader->left -= bits;
}

/* Return the value of the first size bits, 1 to 15: RECEIVE (F.2.2.4) and EXTEND (F.2.2.1). If the first bit is 0, the
 * value is minus the number with every bit inverted. */
static inline int32_t number_in(uint64_t bits, uint32_t size) {
    uint64_t turn = bits >> 63 ? 0 : UINT64_MAX;
    return (int32_t)(((bits ^ turn) >> (64 - size) ^ turn) - turn);
}

/* Decode a block (F.2.2.1, F.2.2.2) into block, which holds zeros; keep nothing unless kept. Return false for an unknown
 * code. Whatever the bits are, at most LONGEST + 8 bytes are read, and only the block's 64 coefficients are written. */
static inline __attribute__((always_inline)) int decode_block(struct reader *reader_kept, const struct codes *dc,
                                                              const struct codes *ac, int32_t *last, int kept,
                                                              JCOEFPTR block) {
    /* Zigzag order (A.3.6). In damaged data a run may lead beyond the last coefficient; it ends there, as in libjpeg. */
    static const uint8_t places[64 + 16] = {
        0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,
        6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31,
        39, 46, 53, 60, 61, 54, 47, 55, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63};
    struct reader reader = *reader_kept;
    const uint32_t *steps = ac->steps;
    __asm__("" : "+r"(steps)); /* keep the address in a register: gcc would add it up for each look-up, in the chain */

    /* The DC coefficient: a difference to that of the component's last block. It wraps around in damaged data. */
    refill(&reader);
    uint32_t step = dc->steps[reader.held >> (64 - LOOK)];
    if (!step) step = long_step(dc, reader.held);
    if (!step) return 0;
    int32_t more = SIZE(step) ? number_in(reader.held << (BITS(step) - SIZE(step)), SIZE(step)) : 0;
    *last = (int32_t)((uint32_t)*last + (uint32_t)more);
    if (kept) block[0] = (JCOEF)*last;
    take(&reader, BITS(step));

    /* The AC coefficients. Before each step k is the index of the next one. The look-up comes before the refill, which then
     * runs beside it: a step takes at most 31 of 56 bits, so enough are left for it. */
    for (int32_t k = 1; k < 64; k++) {
        step = steps[reader.held >> (64 - LOOK)];
        refill(&reader);
        if (LIKELY(SIZE(step))) {
            k += RUN(step);
            if (kept) block[places[k]] = (JCOEF)number_in(reader.held << AT(step), SIZE(step));
            if (LIKELY(k < 63)) {
                k += AHEAD(step);
                if (kept) block[places[k]] = (JCOEF)number_in(reader.held << AT2(step), SIZE2(step));
                take(&reader, BITS(step));
                if (END(step)) break;
            } else {
                take(&reader, AT(step) + SIZE(step)); /* the block is full, so the second code belongs to the next one */
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

/* Return true if any of count MCUs, beginning with first, lies in the crop. A range over several rows of MCUs counts as in
 * the crop if any of its rows is. */
static int any_in_crop(const struct entropy *entropy, int32_t first, int32_t count, int32_t in_a_row) {
    int32_t last = first + count - 1, top = first / in_a_row, bottom = last / in_a_row;
    if (bottom < entropy->top || top >= entropy->bottom) return 0;
    return top < bottom || (last - top * in_a_row >= entropy->left && first - top * in_a_row < entropy->right);
}

/* Begin a restart interval (E.2.4): check the restart marker before it, copy its bytes up to the next marker without the
 * stuffed ones (B.1.1.5), and reset the DC prediction. Return false if either marker is missing, or the first is not the
 * expected RSTm, which count modulo 8. A skipped interval is only searched for its end. */
static int begin_interval(struct entropy *entropy) {
    const uint8_t *from = entropy->coded, *stop;
    uint8_t *to = entropy->bytes;
    if (entropy->intervals > 0) {
        if (from[0] != 0xFF || from[1] != JPEG_RST0 + (entropy->intervals - 1) % 8) return 0;
        from += 2;
    }
    entropy->intervals++;
    for (;;) {
        stop = memchr(from, 0xFF, entropy->coded_end - from);
        if (!stop || stop + 1 == entropy->coded_end) return 0;
        if (!entropy->skipped) memcpy(to, from, stop - from + 1);
        to += stop - from + 1;
        if (stop[1]) break;
        from = stop + 2;
    }
    entropy->coded = stop;
    entropy->bytes_end = to - 1;
    entropy->reader = (struct reader){entropy->bytes, 0, 0};
    if (!entropy->skipped) memset(entropy->bytes_end, 0, LONGEST + 8);
    memset(entropy->last, 0, sizeof entropy->last);
    return 1;
}

/* Return the bits left in the restart interval; it is negative if decoding read beyond its end. */
static int64_t unread_bits(const struct entropy *entropy) {
    return (entropy->bytes_end - entropy->reader.next) * 8 + entropy->reader.left;
}

/* Decode the next MCU in the order of the scan (E.2.5), in place of libjpeg's function. Outside the crop coefficients are
 * not kept; below it nothing is decoded. Call error_exit for an unknown code, for data that ends too early, and if a byte
 * or more is left over at the end of a restart interval, which is padded with at most 7 bits (F.1.2.3). */
static boolean decode_mcu(j_decompress_ptr info, JBLOCKROW *blocks) {
    struct entropy *entropy = info->client_data;
    int32_t in_a_row = info->MCUs_per_row, mcu = entropy->mcu++;
    if (mcu >= entropy->bottom * in_a_row) return TRUE;
    if (!entropy->left_in_interval) {
        int32_t to_go = in_a_row * info->MCU_rows_in_scan - mcu, interval = info->restart_interval;
        entropy->left_in_interval = interval && interval < to_go ? interval : to_go;
        entropy->skipped = !any_in_crop(entropy, mcu, entropy->left_in_interval, in_a_row);
        if (!begin_interval(entropy)) fail(info);
    }
    entropy->left_in_interval--;
    if (entropy->skipped) return TRUE;
    int wanted = blocks && any_in_crop(entropy, mcu, 1, in_a_row);
    for (int32_t i = 0; i < info->blocks_in_MCU; i++) {
        int32_t number = info->MCU_membership[i];
        const jpeg_component_info *component = info->cur_comp_info[number];
        const struct codes *dc = &entropy->dc[component->dc_tbl_no], *ac = &entropy->ac[component->ac_tbl_no];
        int32_t *last = &entropy->last[number];
        int known = wanted ? decode_block(&entropy->reader, dc, ac, last, 1, *blocks[i])
                           : decode_block(&entropy->reader, dc, ac, last, 0, NULL);
        if (!known || unread_bits(entropy) < 0) fail(info);
    }
    if (!entropy->left_in_interval && unread_bits(entropy) >= 8) fail(info);
    return TRUE;
}

void entropy_replace(struct entropy *entropy, j_decompress_ptr info, int32_t top, int32_t bottom, int32_t left,
                     int32_t right) {
    int alone = info->comps_in_scan == 1; /* A.2.2: then an MCU is one block, whatever the sampling factors */
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
    entropy->mcu = entropy->intervals = entropy->left_in_interval = 0;
    info->client_data = entropy;
    info->entropy->decode_mcu = decode_mcu;
}

void entropy_check(struct entropy *entropy, j_decompress_ptr info) {
    entropy_replace(entropy, info, 0, info->image_height, 0, info->image_width);
    for (JDIMENSION left = info->MCUs_per_row * info->MCU_rows_in_scan; left > 0; left--) decode_mcu(info, NULL);
}
