/* CRC-32 of IEEE 802.3, bits reversed: 64 bytes at a time if the processor has carry-less multiplication, else 8.
 *
 * Source: Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel 2009. 64 bytes
 * are folded into the next 64, the last 64 into 16, and the result is reduced modulo the polynomial by Barrett's method.
 * The constants are powers of x modulo the polynomial, bits reversed, from the end of that paper.
 */

#include "checksum.h"

static uint32_t tables[8][256]; /* the contribution of a byte to the CRC if 0 to 7 bytes follow it */

/* Fill the tables when the library is loaded, before any thread can read them. */
__attribute__((constructor)) static void fill_tables(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int i = 0; i < 8; i++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
        tables[0][byte] = crc;
    }
    for (int i = 1; i < 8; i++)
        for (int byte = 0; byte < 256; byte++)
            tables[i][byte] = tables[i - 1][byte] >> 8 ^ tables[0][tables[i - 1][byte] & 255];
}

/* Update crc with any number of bytes, eight at a time, by table look-ups. */
static uint32_t looked_up(uint32_t crc, const uint8_t *bytes, size_t length) {
    for (; length >= 8; bytes += 8, length -= 8) {
        crc = tables[7][(crc ^ bytes[0]) & 255] ^ tables[6][(crc >> 8 ^ bytes[1]) & 255]
            ^ tables[5][(crc >> 16 ^ bytes[2]) & 255] ^ tables[4][crc >> 24 ^ bytes[3]]
            ^ tables[3][bytes[4]] ^ tables[2][bytes[5]] ^ tables[1][bytes[6]] ^ tables[0][bytes[7]];
    }
    for (; length > 0; bytes++, length--) crc = crc >> 8 ^ tables[0][(crc ^ *bytes) & 255];
    return crc;
}

#ifdef __x86_64__
#include <immintrin.h>

#define TARGET __attribute__((target("pclmul,sse4.1")))

TARGET static inline __m128i load(const uint8_t *bytes) { return _mm_loadu_si128((const __m128i *)bytes); }

/* Multiply 16 bytes by the power of x that the factors stand for, which moves them ahead, and add the bytes there. */
TARGET static inline __m128i fold(__m128i bytes, __m128i factors, __m128i there) {
    __m128i low = _mm_clmulepi64_si128(bytes, factors, 0x00), high = _mm_clmulepi64_si128(bytes, factors, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), there);
}

/* Update crc with a multiple of 16 bytes, at least 64. */
TARGET static uint32_t folded(uint32_t crc, const uint8_t *bytes, size_t length) {
    const __m128i over_64 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4), over_16 = _mm_set_epi64x(0xccaa009e, 0x1751997d0);
    const __m128i over_4 = _mm_set_epi64x(0, 0x163cd6124), barrett = _mm_set_epi64x(0x1f7011641, 0x1db710641);
    const __m128i low_halves = _mm_setr_epi32(-1, 0, -1, 0);
    __m128i x[4];
    for (int i = 0; i < 4; i++) x[i] = load(bytes + 16 * i);
    x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128((int)crc));
    for (bytes += 64, length -= 64; length >= 64; bytes += 64, length -= 64)
        for (int i = 0; i < 4; i++) x[i] = fold(x[i], over_64, load(bytes + 16 * i));
    for (int i = 1; i < 4; i++) x[0] = fold(x[0], over_16, x[i]);
    for (; length >= 16; bytes += 16, length -= 16) x[0] = fold(x[0], over_16, load(bytes));

    __m128i rest = _mm_xor_si128(_mm_srli_si128(x[0], 8), _mm_clmulepi64_si128(x[0], over_16, 0x10)); /* to 96 bits, then 64 */
    rest = _mm_xor_si128(_mm_srli_si128(rest, 4), _mm_clmulepi64_si128(_mm_and_si128(rest, low_halves), over_4, 0x00));
    __m128i quotient = _mm_clmulepi64_si128(_mm_and_si128(rest, low_halves), barrett, 0x10);
    __m128i multiple = _mm_clmulepi64_si128(_mm_and_si128(quotient, low_halves), barrett, 0x00);
    return (uint32_t)_mm_extract_epi32(_mm_xor_si128(rest, multiple), 1);
}

/* Return true if the processor has the instructions that folded needs. */
static int folds(void) { return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1"); }
#else
static uint32_t folded(uint32_t crc, const uint8_t *bytes, size_t length) { return crc; }

static int folds(void) { return 0; }
#endif

uint32_t checksum(const uint8_t *bytes, size_t length) {
    uint32_t crc = 0xFFFFFFFF;
    size_t whole = length >= 64 && folds() ? length / 16 * 16 : 0;
    if (whole) crc = folded(crc, bytes, whole);
    return ~looked_up(crc, bytes + whole, length - whole);
}
