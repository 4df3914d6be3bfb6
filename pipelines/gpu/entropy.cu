/* Restart markers and Huffman decoding; batch.cu comes before. */

/* Find the restart markers of an image as far down as its crop, and set its status: arguments, header, and markers. A marker
 * is any byte 0xFF that no zero byte follows (B.1.1.2, B.1.1.5). */
KERNEL(find_markers, FIND_THREADS) {
    SHARED int counts[FIND_THREADS];
    SHARED int problem, needed; /* needed: markers, of which the last may be of any kind */
    int bytes = batch.sizes[row], *ends = batch.ends + (i64)row * batch.pieces;
    int begin = batch.header_bytes, share = (most(0, bytes - begin) + FIND_THREADS - 1) / FIND_THREADS;

    EACH_THREAD(FIND_THREADS) {
        if (thread) continue;
        problem = !sound(batch, row) ? BAD_ARGUMENTS : bytes && bytes < begin ? OTHER_HEADER : RIGHT;
        needed = 0;
        if (!problem && bytes) needed = (window_of(batch, row).bottom * batch.mcus_across - 1) / batch.interval + 1;
    }
    EACH_THREAD(FIND_THREADS) {
        counts[thread] = 0;
        if (!needed) continue;
        const u8 *file = batch.data + batch.offsets[row];
        for (int i = thread; i < begin; i += FIND_THREADS)
            if (file[i] != batch.header[i]) worsen(&problem, OTHER_HEADER);
        int at = begin + thread * share, stop = least(at + share, bytes - 1);
        for (; at < stop; at++) counts[thread] += file[at] == 0xFF && file[at + 1];
    }
    EACH_THREAD(FIND_THREADS) {
        if (!needed) continue;
        const u8 *file = batch.data + batch.offsets[row];
        int number = 0;
        for (int i = 0; i < thread; i++) number += counts[i];
        int at = begin + thread * share, stop = least(at + share, bytes - 1);
        for (; at < stop && number < needed; at++) {
            if (file[at] != 0xFF || !file[at + 1]) continue;
            if (number < needed - 1 && file[at + 1] != 0xD0 + number % 8) worsen(&problem, BAD_MARKERS);
            ends[number++] = at;
        }
        if (thread == FIND_THREADS - 1 && number < needed) worsen(&problem, BAD_MARKERS);
    }
    EACH_THREAD(FIND_THREADS) {
        if (thread) continue;
        batch.status[row] = problem;
        if (problem || !needed) ends[0] = -1;
    }
}

struct Reader { /* a position in a piece's bits */
    const u8 *next, *end;
    u64 held;   /* the next bits, first one topmost */
    int left;   /* number of bits in held */
    int padded; /* bits behind the piece's end that were loaded, as zeros */
};

/* Return four bytes, the first one topmost, by two aligned loads: of up to three bytes before and four behind. */
INLINE u32 four_bytes(const u8 *at) {
    int beyond = (int)((u64)at & 3);
    const u32 *words = (const u32 *)(at - beyond);
    u32 loaded = (u32)(((u64)words[1] << 32 | words[0]) >> 8 * beyond);
    return loaded << 24 | (loaded & 0xFF00) << 8 | (loaded >> 8 & 0xFF00) | loaded >> 24;
}

/* Return true if a byte of four is 0xFF. */
INLINE bool has_ff(u32 bytes) { return (~bytes - 0x01010101) & bytes & 0x80808080; }

/* Load four bytes, without stuffed ones (B.1.1.5), unless 32 bits are held. They suffice for a code and its value. */
INLINE void refill(Reader &reader) {
    if (reader.left >= 32) return;
    bool many = reader.end - reader.next >= 8;
    u32 loaded = many ? four_bytes(reader.next) : 0;
    if (many && !has_ff(loaded)) {
        reader.next += 4;
    } else {
        for (int i = 0; i < 4; i++) {
            u32 byte = 0;
            if (reader.next < reader.end) {
                byte = *reader.next;
                reader.next += byte == 0xFF ? 2 : 1;
            } else {
                reader.padded += 8;
            }
            loaded = loaded << 8 | byte;
        }
    }
    reader.held |= (u64)loaded << (32 - reader.left);
    reader.left += 32;
}

/* Return the code that the bits begin with, as lookup has it: DECODE of F.2.2.3 beyond LOOK bits. Return 0 without one. */
INLINE u32 long_code(const Tables *tables, int table, u64 held) {
    for (int length = LOOK + 1; length <= 16; length++) {
        int code = (int)(held >> (64 - length));
        if (code < tables->above[table][length])
            return length << 8 | tables->symbols[table][(code + tables->offset[table][length]) & 255];
    }
    return 0;
}

/* Return the value of the first size bits, 0 to 15: RECEIVE (F.2.2.4) and EXTEND (F.2.2.1). */
INLINE int number_in(u64 held, int size) {
    int value = (int)(held >> 32 >> (32 - size));
    return size && value < 1 << (size - 1) ? value - (1 << size) + 1 : value;
}

struct Place { int first, down, right, component; }; /* of a block in an MCU: index of the image's first such block, and
                                                        * how far it is to that of the MCU below and to the right */

/* Return the place of a block, by its number in the MCU (A.2.3): the blocks of the first component come first. */
INLINE Place place_of(const Batch &batch, int number) {
    int across = batch.mcus_across, mcus = batch.mcus_down * across, lumas = batch.h * batch.v;
    if (number >= lumas) return {mcus * number, across, 1, number - lumas + 1};
    int down = number >> (batch.h - 1), right = number & (batch.h - 1);
    return {down * across * batch.h + right, batch.v * across * batch.h, batch.h, 0};
}

INLINE void clear(i16 *coefficients) {
    struct alignas(16) Quad { u32 of[4]; };
    for (int i = 0; i < 8; i++) ((Quad *)coefficients)[i] = Quad{{0, 0, 0, 0}};
}

/* Decode count MCUs from first (E.2.4, F.2.2) into an image's coefficients; return the status. One loop over the symbols of
 * all blocks, so that neighbouring threads stay together. Each turn advances k, so there are at most 64 a block. */
INLINE int decode_piece(const Batch &batch, const u16 *lookup, const u8 *zigzag, const Place *places, Reader reader,
                        int first, int count, i16 *image) {
    int line = first / batch.mcus_across, column = first % batch.mcus_across, number = 0, component = 0, k = 0;
    int blocks = batch.h * batch.v + batch.components - 1;
    u32 last[3] = {0, 0, 0}; /* each component's last DC value: PRED of F.2.1.3.1. It wraps around in damaged data */
    i16 *out = image + 64 * (line * places[0].down + column * places[0].right);
    clear(out);
    for (;;) {
        refill(reader);
        int table = 2 * component + (k > 0);
        u32 code = lookup[(table << LOOK) + (u32)(reader.held >> (64 - LOOK))];
        if (!code) code = long_code(batch.tables, table, reader.held);
        if (!code) return BAD_CODE;
        int length = code >> 8, size = code & 15, run = code >> 4 & 15;
        int value = number_in(reader.held << length, size);
        reader.held <<= length + size;
        reader.left -= length + size;
        if (!k) {
            u32 dc = (component == 0 ? last[0] : component == 1 ? last[1] : last[2]) + value;
            (component == 0 ? last[0] : component == 1 ? last[1] : last[2]) = dc;
            out[0] = (i16)dc;
            k = 1;
        } else if (size) { /* in damaged data a run may lead beyond the last coefficient; it ends there, as in libjpeg */
            out[zigzag[least(k + run, 63)]] = (i16)value;
            k += run + 1;
        } else {
            k = run == 15 ? k + 16 : 64; /* ZRL or EOB */
        }
        if (k < 64) continue;
        if (reader.left < reader.padded) return TOO_SHORT;
        k = 0;
        if (++number == blocks) {
            if (--count == 0) break;
            number = 0;
            if (++column == batch.mcus_across) column = 0, line++;
        }
        component = places[number].component;
        out = image + 64 * (places[number].first + line * places[number].down + column * places[number].right);
        clear(out);
    }
    return reader.next < reader.end || reader.left - reader.padded >= 8 ? TOO_LONG : RIGHT; /* padded with 7 bits at most */
}

KERNEL(decode_pieces, PIECE_THREADS) {
    SHARED u16 lookup[6 << LOOK];
    SHARED u8 zigzag[64];
    SHARED Place places[6];
    EACH_THREAD(PIECE_THREADS) {
        if (thread < 64) zigzag[thread] = batch.tables->zigzag[thread];
        if (thread < 6) places[thread] = place_of(batch, thread);
        for (int i = thread; i < 6 << LOOK; i += PIECE_THREADS) lookup[i] = batch.tables->lookup[i];
    }
    EACH_THREAD(PIECE_THREADS) {
        int piece = block * PIECE_THREADS + thread, first = piece * batch.interval;
        const int *ends = batch.ends + (i64)row * batch.pieces;
        if (piece >= batch.pieces || ends[0] < 0) continue;
        int count = least(batch.interval, batch.mcus_down * batch.mcus_across - first);
        if (!touches(window_of(batch, row), first, count, batch.mcus_across)) continue;
        const u8 *file = batch.data + batch.offsets[row];
        Reader reader = {file + (piece ? ends[piece - 1] + 2 : batch.header_bytes), file + ends[piece], 0, 0, 0};
        i16 *image = batch.coefficients + (i64)row * blocks_of(batch) * 64;
        int code = decode_piece(batch, lookup, zigzag, places, reader, first, count, image);
        if (code) worsen(&batch.status[row], code);
    }
}

