package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
)

// quicSecretBytes is the size of the file quic.key.
const quicSecretBytes = 32

// quicConfig returns what the processes of a node whose data lies in dir have in
// common over QUIC. The tag of connection ids is half the node's, by its name,
// and half the process's.
func quicConfig(dir, node string) (proxyhttp.QUICConfig, error) {
	path := filepath.Join(dir, "quic.key")
	secret, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		secret, err = makeQUICSecret(path)
	}
	if err != nil {
		return proxyhttp.QUICConfig{}, fmt.Errorf("read the key of QUIC: %w", err)
	}
	if len(secret) != quicSecretBytes {
		return proxyhttp.QUICConfig{}, fmt.Errorf("read the key of QUIC: %s has %d bytes, not %d; remove it, and a new one is made",
			path, len(secret), quicSecretBytes)
	}
	of := sha256.Sum256([]byte(node))
	tag := of[:4]
	rand.Read(tag[2:])
	return proxyhttp.QUICConfig{Secret: secret, Tag: binary.BigEndian.Uint32(tag)}, nil
}

// makeQUICSecret writes the file whole or not at all.
func makeQUICSecret(path string) ([]byte, error) {
	secret := make([]byte, quicSecretBytes)
	rand.Read(secret)
	tmp, err := os.CreateTemp(filepath.Dir(path), "quic-*") // of mode 0600
	if err != nil {
		return nil, err
	}
	_, err = tmp.Write(secret)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(tmp.Name()))
	}
	return secret, nil
}
