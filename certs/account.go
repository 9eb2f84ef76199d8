package certs

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
)

// storedAccount is an account with an authority as storage has it. It is one
// value, so that no account is ever there without its key.
type storedAccount struct {
	Account  acme.Account `json:"account"`
	Key      string       `json:"key"` // PEM; a secret
	EABKeyID string       `json:"eab_key_id,omitempty"`
}

// AccountOfBefore returns where storage has the account with an authority and for
// a contact, both as they stand in keys, and what is stored there, of the two
// files that certmagic kept of it: its description, and its private key in PEM.
func AccountOfBefore(ca, contact string, description, key []byte) (at string, value []byte, err error) {
	stored := storedAccount{Key: string(key)}
	if err := json.Unmarshal(description, &stored.Account); err != nil {
		return "", nil, err
	}
	if _, err := certmagic.PEMDecodePrivateKey(key); err != nil {
		return "", nil, err
	}
	value, err = json.MarshalIndent(stored, "", "\t")
	return accountKey(ca, contact), value, err
}

func accountKey(ca, contact string) string { return "users/" + ca + "/" + contact + ".json" }

// accountKey is where storage has the account: one for each authority and
// contact.
func (a *authority) accountKey() string {
	contact := "default"
	if a.Email != "" {
		contact = certmagic.StorageKeys.Safe(a.Email)
	}
	return accountKey(a.ca, contact)
}

// account returns the account that all nodes use, and registers it where there
// is none yet.
func (a *authority) account(ctx context.Context, client *acme.Client) (acme.Account, error) {
	account, err := a.loadAccount(ctx)
	if !errors.Is(err, fs.ErrNotExist) {
		return account, err
	}
	lock := "account_" + a.ca
	if err := a.storage.Lock(ctx, lock); err != nil {
		return acme.Account{}, fmt.Errorf("wait to register an account with issuer %s: %w", a.Name, err)
	}
	defer a.storage.Unlock(context.WithoutCancel(ctx), lock)
	account, err = a.loadAccount(ctx) // another node may have been quicker
	if !errors.Is(err, fs.ErrNotExist) {
		return account, err
	}
	return a.register(ctx, client)
}

// loadAccount returns the account in storage, or fs.ErrNotExist where there is
// none that is bound as it should be.
func (a *authority) loadAccount(ctx context.Context) (acme.Account, error) {
	blob, err := a.storage.Load(ctx, a.accountKey())
	if err != nil {
		return acme.Account{}, fmt.Errorf("load the account with issuer %s: %w", a.Name, err)
	}
	var stored storedAccount
	if err := json.Unmarshal(blob, &stored); err != nil {
		return acme.Account{}, fmt.Errorf("the stored account with issuer %s is damaged; delete acme/%s: %w", a.Name, a.accountKey(), err)
	}
	if stored.EABKeyID != a.EABKeyID {
		return acme.Account{}, fs.ErrNotExist
	}
	key, err := certmagic.PEMDecodePrivateKey([]byte(stored.Key))
	if err != nil {
		return acme.Account{}, fmt.Errorf("the stored account with issuer %s is damaged; delete acme/%s: %w", a.Name, a.accountKey(), err)
	}
	stored.Account.PrivateKey = key
	return stored.Account, nil
}

// register makes an account and stores it.
func (a *authority) register(ctx context.Context, client *acme.Client) (acme.Account, error) {
	account, err := a.newAccount(ctx, client)
	if err != nil {
		return acme.Account{}, err
	}
	key, err := certmagic.PEMEncodePrivateKey(account.PrivateKey.(crypto.PrivateKey))
	if err != nil {
		return acme.Account{}, err
	}
	blob, err := json.MarshalIndent(storedAccount{Account: account, Key: string(key), EABKeyID: a.EABKeyID}, "", "\t")
	if err != nil {
		return acme.Account{}, err
	}
	if err := a.storage.Store(ctx, a.accountKey(), blob); err != nil {
		return acme.Account{}, fmt.Errorf("store the account with issuer %s: %w", a.Name, err)
	}
	return account, nil
}

// newAccount makes an account with a key of its own (RFC 8555 section 7.3).
func (a *authority) newAccount(ctx context.Context, client *acme.Client) (acme.Account, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return acme.Account{}, err
	}
	account := acme.Account{PrivateKey: key, TermsOfServiceAgreed: true}
	if a.Email != "" {
		account.Contact = []string{"mailto:" + a.Email}
	}
	if a.EABKeyID != "" {
		mac, err := a.eabKey()
		if err == nil {
			err = account.SetExternalAccountBinding(ctx, client, acme.EAB{KeyID: a.EABKeyID, MACKey: mac})
		}
		if err != nil {
			return acme.Account{}, fmt.Errorf("bind the account with issuer %s to %q: %w", a.Name, a.EABKeyID, err)
		}
	}
	account, err = client.NewAccount(ctx, account)
	if err != nil {
		return acme.Account{}, fmt.Errorf("register an account with issuer %s: %w", a.Name, err)
	}
	account.PrivateKey, account.ExternalAccountBinding = key, nil
	return account, nil
}

// forget deletes an account that the authority does not know any more.
func (a *authority) forget(ctx context.Context) error {
	err := a.storage.Delete(ctx, a.accountKey())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete the account that issuer %s does not know: %w", a.Name, err)
	}
	return nil
}
