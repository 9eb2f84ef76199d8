package clienttls_test

import (
	"crypto/tls"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/remotegpu/sluice/proxy/clienttls"
	"github.com/remotegpu/sluice/router"
)

// TestConfigurationsAreMadeOnce looks at what a handshake costs beside crypto/tls,
// with ten thousand domains that ask for certificates.
func TestConfigurationsAreMadeOnce(t *testing.T) {
	var table atomic.Pointer[router.Table]
	var b router.Builder
	table.Store(b.Table(1))
	terms := clienttls.New(clienttls.Config{Table: table.Load})
	server := terms.Server(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }})
	if server.Config().GetConfigForClient != nil {
		t.Error("hellos are looked at, and nobody is asked for anything")
	}
	for i := range 10_000 {
		d, err := router.ParseDomain(fmt.Sprintf("host%d.x.test", i), []byte(`{"client_auth":{"ca":"staff"}}`))
		if err != nil {
			t.Fatal(err)
		}
		b.SetDomain(d)
	}
	table.Store(b.Table(2))
	choose := server.Config().GetConfigForClient
	if choose == nil {
		t.Fatal("hellos are not looked at, and there are domains that ask")
	}
	asks, silent := &tls.ClientHelloInfo{ServerName: "host1234.x.test"}, &tls.ClientHelloInfo{ServerName: "open.x.test"}
	first, err := choose(asks)
	if err != nil || first == nil || first.ClientAuth != tls.RequireAndVerifyClientCert {
		t.Fatalf("a domain that asks: %v, %v", first, err)
	}
	if allocs := testing.AllocsPerRun(100, func() {
		if server.Config().GetConfigForClient == nil {
			t.Error("no hook")
		}
		if again, err := choose(asks); again != first || err != nil {
			t.Error("another configuration was made")
		}
		if none, err := choose(silent); none != nil || err != nil {
			t.Error("a configuration for who asks for nothing")
		}
	}); allocs != 0 {
		t.Errorf("choosing allocates %v times", allocs)
	}
	terms.SetECHKeys([]tls.EncryptedClientHelloKey{{}})
	table.Store((&router.Builder{}).Table(3))
	if server.Config().GetEncryptedClientHelloKeys == nil {
		t.Error("encrypted hellos are not read")
	}
	if terms.Server(&tls.Config{}, clienttls.WithoutECH()).Config().GetEncryptedClientHelloKeys != nil {
		t.Error("encrypted hellos are read where they are not to be")
	}
}
