/* CRC-32 as in zip, PNG and Python's zlib.crc32: checksum.c. */

#include <stddef.h>
#include <stdint.h>

/* Return the CRC-32 of length bytes. */
uint32_t checksum(const uint8_t *bytes, size_t length);
