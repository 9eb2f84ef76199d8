package http

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/quic-go/quic-go"
)

// Every connection id that this process gives out begins with its tag, in the
// clear: whoever has a datagram of a connection sees which process the
// connection is at, without a key or a table. A node that takes over a socket from another process,
// or a balancer in front of several, can route by it. Behind the tag an id is
// random, so that no two of one connection can be linked.
const (
	quicTagBytes = 4
	quicIDBytes  = quicTagBytes + 8
)

// quicIDs generates connection ids with a tag.
type quicIDs uint32

func (tag quicIDs) ConnectionIDLen() int { return quicIDBytes }

func (tag quicIDs) GenerateConnectionID() (quic.ConnectionID, error) {
	var id [quicIDBytes]byte
	binary.BigEndian.PutUint32(id[:], uint32(tag))
	rand.Read(id[quicTagBytes:])
	return quic.ConnectionIDFromBytes(id[:]), nil
}

// quicKeys are what a node must have kept from one process to the next, so that
// clients of a former one learn at once, by a stateless reset, that their
// connection is gone (RFC 9000 section 10.3), and that what proves their address
// still counts.
type quicKeys struct {
	reset quic.StatelessResetKey
	token quic.TokenGeneratorKey
}

// newQUICKeys derives the keys from a secret. Without one they are random.
func newQUICKeys(secret []byte) (*quicKeys, error) {
	if len(secret) == 0 {
		secret = make([]byte, 32)
		rand.Read(secret)
	}
	var k quicKeys
	for _, key := range []struct {
		into []byte
		use  string
	}{{k.reset[:], "sluice quic stateless reset"}, {k.token[:], "sluice quic address token"}} {
		made, err := hkdf.Key(sha256.New, secret, nil, key.use, len(key.into))
		if err != nil {
			return nil, fmt.Errorf("derive a key for QUIC: %w", err)
		}
		copy(key.into, made)
	}
	return &k, nil
}
