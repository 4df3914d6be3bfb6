/* CRC-32 as in zip, PNG and Python's zlib.crc32: checksum.c. */

#include <stddef.h>
#include <stdint.h>

uint32_t checksum(const uint8_t *bytes, size_t length);
