package upstream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/pires/go-proxyproto"
)

// TLVs are the type-length-values of a PROXY header, version 2 (section 2.2 of the
// protocol): the name asked for, an ID, what TLS said, and whatever else a proxy
// had to tell. They are kept byte for byte, in their order, for the next one to
// read; what is about the one header alone, its checksum and padding, is left
// out. At most 4 KB.
type TLVs string

const tlvHead = 3 // type and length

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// parseTLVs returns the TLVs of header, which raw is in full. It refuses those
// that do not add up, and a header that its checksum says was damaged (section
// 2.2.3).
func parseTLVs(raw []byte, header *proxyproto.Header) (TLVs, error) {
	at := fixedV2
	switch {
	case header.TransportProtocol.IsIPv4():
		at += 12
	case header.TransportProtocol.IsIPv6():
		at += 36
	case header.TransportProtocol.IsUnix():
		at += 216
	case header.Command.IsLocal():
		return "", nil // what follows may be anything (section 2.2)
	}
	var kept []byte
	checksums := 0
	for at < len(raw) {
		if len(raw)-at < tlvHead {
			return "", errCutShort
		}
		kind, length := proxyproto.PP2Type(raw[at]), int(binary.BigEndian.Uint16(raw[at+1:]))
		end := at + tlvHead + length
		if end > len(raw) {
			return "", errCutShort
		}
		switch kind {
		case proxyproto.PP2_TYPE_NOOP:
		case proxyproto.PP2_TYPE_CRC32C:
			if checksums++; checksums > 1 || length != 4 {
				return "", errors.New("its checksum is not one of four bytes")
			}
			if err := checkSum(raw, at+tlvHead); err != nil {
				return "", err
			}
		default:
			kept = append(kept, raw[at:end]...)
		}
		at = end
	}
	return TLVs(kept), nil
}

var errCutShort = errors.New("its type-length-values are cut short")

// checkSum compares the checksum that stands at raw[at:] with that of raw, whose
// own place counts as zeros.
func checkSum(raw []byte, at int) error {
	var zeros [4]byte
	sum := crc32.Update(0, castagnoli, raw[:at])
	sum = crc32.Update(sum, castagnoli, zeros[:])
	sum = crc32.Update(sum, castagnoli, raw[at+len(zeros):])
	if told := binary.BigEndian.Uint32(raw[at:]); told != sum {
		return fmt.Errorf("its checksum is %08x, and should be %08x", told, sum)
	}
	return nil
}
