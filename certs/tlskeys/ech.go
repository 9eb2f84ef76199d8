package tlskeys

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/remotegpu/sluice/certs"
)

// echSharedKey is where the keys of encrypted hellos lie in certs.Shared.
const echSharedKey = "shared/ech"

// MaxECH is how many keys are kept: who has looked a name up may come with one
// that is older than what DNS says now.
const MaxECH = 4

// ECH are the keys of encrypted hellos (RFC 9849), newest first.
type ECH struct {
	Version int `json:"version"` // 1
	// PublicName is what such a hello says in the clear, of the newest key.
	PublicName string   `json:"public_name"`
	Keys       []ECHKey `json:"keys"`
}

// ECHKey is one of them.
type ECHKey struct {
	Config []byte    `json:"config"` // an ECHConfig
	Secret []byte    `json:"secret"` // X25519
	Made   time.Time `json:"made"`
}

// ConfigList returns the newest key as clients get it: the ech parameter of an
// HTTPS record in DNS is this in base64.
func (e ECH) ConfigList() []byte {
	config := e.Keys[0].Config
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(config))), config...)
}

// Record returns what an HTTPS record (RFC 9460) of a name has to say of the
// newest key.
func (e ECH) Record() string { return "ech=" + base64.StdEncoding.EncodeToString(e.ConfigList()) }

// forServer returns the keys as crypto/tls has them. Clients whose key is unknown
// are told the newest.
func (e ECH) forServer() []tls.EncryptedClientHelloKey {
	keys := make([]tls.EncryptedClientHelloKey, len(e.Keys))
	for i, k := range e.Keys {
		keys[i] = tls.EncryptedClientHelloKey{Config: k.Config, PrivateKey: k.Secret, SendAsRetry: i == 0}
	}
	return keys
}

// LoadECH reads the keys. The error is fs.ErrNotExist where there are none.
func LoadECH(ctx context.Context, shared certs.Shared) (ECH, error) {
	e, _, err := loadECH(ctx, shared)
	return e, err
}

func loadECH(ctx context.Context, shared certs.Shared) (e ECH, rev int64, err error) {
	v, err := shared.Get(ctx, echSharedKey)
	if err != nil {
		return e, 0, err
	}
	e, err = parseECH(v.Data)
	return e, v.Rev, err
}

// GenerateECH makes another key for publicName and puts it before those there
// are, of which the oldest go. publicName has been checked to be a DNS name.
func GenerateECH(ctx context.Context, shared certs.Shared, publicName string) (ECH, error) {
	for {
		was, rev, err := loadECH(ctx, shared)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return ECH{}, err
		}
		key, err := newECHKey(publicName, was.Keys)
		if err != nil {
			return ECH{}, err
		}
		e := ECH{Version: 1, PublicName: publicName, Keys: append([]ECHKey{key}, was.Keys[:min(len(was.Keys), MaxECH-1)]...)}
		data, err := json.Marshal(e)
		if err != nil {
			return ECH{}, err
		}
		if _, err = shared.Swap(ctx, echSharedKey, rev, data); !errors.Is(err, certs.ErrSwapped) {
			return e, err
		}
	}
}

// RemoveECH deletes all keys: hellos that are encrypted to them are answered
// under the public name, without a key to try again with. The error is
// fs.ErrNotExist where there are none.
func RemoveECH(ctx context.Context, shared certs.Shared) error {
	v, err := shared.Get(ctx, echSharedKey)
	if err != nil {
		return err
	}
	_, err = shared.Swap(ctx, echSharedKey, v.Rev, nil)
	return err
}

// Numbers of RFC 9849 and RFC 9180.
const (
	echVersion  = 0xfe0d
	kemX25519   = 0x0020
	kdfSHA256   = 0x0001
	aeadAES128  = 0x0001
	aeadChaCha  = 0x0003
	maxNameHint = 64 // up to which clients pad server names
)

// newECHKey makes a key that none of others can be taken for by its id.
func newECHKey(publicName string, others []ECHKey) (ECHKey, error) {
	if len(publicName) == 0 || len(publicName) > 254 {
		return ECHKey{}, fmt.Errorf("the public name has %d bytes, want 1 to 254", len(publicName))
	}
	secret, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return ECHKey{}, err
	}
	taken := map[byte]bool{}
	for _, k := range others {
		taken[k.Config[4]] = true // behind version and length, as parseECH has seen to
	}
	var id [1]byte
	for rand.Read(id[:]); taken[id[0]]; rand.Read(id[:]) {
	}
	public := secret.PublicKey().Bytes()
	b := append([]byte(nil), id[0])
	b = binary.BigEndian.AppendUint16(b, kemX25519)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(public))), public...)
	suites := []uint16{kdfSHA256, aeadAES128, kdfSHA256, aeadChaCha}
	b = binary.BigEndian.AppendUint16(b, uint16(2*len(suites)))
	for _, n := range suites {
		b = binary.BigEndian.AppendUint16(b, n)
	}
	b = append(b, maxNameHint, byte(len(publicName)))
	b = append(b, publicName...)
	b = binary.BigEndian.AppendUint16(b, 0) // no extensions
	config := binary.BigEndian.AppendUint16(nil, echVersion)
	config = append(binary.BigEndian.AppendUint16(config, uint16(len(b))), b...)
	return ECHKey{Config: config, Secret: secret.Bytes(), Made: time.Now().UTC()}, nil
}

// parseECH refuses what crypto/tls would end handshakes for.
func parseECH(data []byte) (e ECH, err error) {
	if err = json.Unmarshal(data, &e); err != nil {
		return ECH{}, errors.New("they are not what a command writes") // json would quote from them
	}
	if e.Version != 1 || len(e.Keys) == 0 || len(e.Keys) > maxKeys {
		return ECH{}, fmt.Errorf("they are of version %d and %d; want version 1 and some", e.Version, len(e.Keys))
	}
	for i, k := range e.Keys {
		secret, err := ecdh.X25519().NewPrivateKey(k.Secret)
		c := k.Config
		if err != nil || len(c) < 9+32 || binary.BigEndian.Uint16(c) != echVersion || int(binary.BigEndian.Uint16(c[2:])) != len(c)-4 ||
			binary.BigEndian.Uint16(c[5:]) != kemX25519 || string(c[9:41]) != string(secret.PublicKey().Bytes()) {
			return ECH{}, fmt.Errorf("key %d of them and its configuration do not belong together", i)
		}
	}
	return e, nil
}

// lookECH hands the keys on that nodes share, if they are others than before.
// Those that are of no use are said once, and those of before stay in use.
func (k *Keeper) lookECH() {
	if k.cfg.UseECH == nil {
		return
	}
	v, ok := k.cfg.Shared.Peek(echSharedKey)
	if v.Rev == k.echRev {
		return
	}
	k.echRev = v.Rev
	if !ok {
		k.cfg.UseECH([]tls.EncryptedClientHelloKey{})
		return
	}
	e, err := parseECH(v.Data)
	if err != nil {
		k.metrics.failures.Inc()
		k.log.Error("the shared keys of encrypted hellos are of no use; those of before stay in use", "err", err)
		return
	}
	k.cfg.UseECH(e.forServer())
	k.log.Info("keys of encrypted hellos taken up", "public_name", e.PublicName, "keys", len(e.Keys))
}
