package control

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Fingerprint tells sets of values in force apart: nodes with the same one have
// the same keys with the same values in force, however each came to them. The
// zero value is that of nothing. Its text is twelve hexadecimal digits.
//
// It is a sum over the keys, so that its cost follows the change and not the
// table, and has 48 bits, so that it is exact as the value of a metric. That two
// sets have the same one by chance is a matter of one in 2^48; it is no defence
// against somebody who chooses values for that.
type Fingerprint uint64

const fingerprintBits = 48

// String returns f as it is shown to people.
func (f Fingerprint) String() string { return fmt.Sprintf("%0*x", fingerprintBits/4, uint64(f)) }

// swap returns the fingerprint of a set after one key's part of it changed.
func (f Fingerprint) swap(was, is Fingerprint) Fingerprint {
	return (f - was + is) & (1<<fingerprintBits - 1)
}

// print notes the value in force of key in the fingerprint. c.mu is held.
func (c *Controller) print(key string, e *entry) {
	// A key has no byte 0, so that nothing else reads the same.
	c.scratch = append(append(append(c.scratch[:0], key...), 0), e.good...)
	sum := sha256.Sum256(c.scratch)
	is := Fingerprint(binary.BigEndian.Uint64(sum[:])) >> (64 - fingerprintBits)
	c.fingerprint = c.fingerprint.swap(e.part, is)
	e.part = is
}

// unprint takes a key that leaves force out of the fingerprint. c.mu is held.
func (c *Controller) unprint(e *entry) {
	c.fingerprint = c.fingerprint.swap(e.part, 0)
	e.part = 0
}
