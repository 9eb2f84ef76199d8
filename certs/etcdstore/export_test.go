package etcdstore

import "time"

// Purge lets go of what was deleted and has expired by now.
func (m *Mirror) Purge(now time.Time) { m.purge(now) }

// DecodeUnit reads a file of the mirror on disk, and EncodeAgain writes what it
// read.
func DecodeUnit(blob []byte) (again []byte, err error) {
	unit, err := decodeUnit(blob)
	if err != nil {
		return nil, err
	}
	return encodeUnit(unit), nil
}
