package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// peerFiles writes a CA and a certificate for members on loopback, of these names
// as well.
func peerFiles(t *testing.T, names ...string) (ca, cert, key string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	newKey := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "peers"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	rootKey, leafKey := newKey(), newKey()
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: root.NotBefore, NotAfter: root.NotAfter, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: names,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, leafKey.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	return write("ca.pem", "CERTIFICATE", rootDER), write("cert.pem", "CERTIFICATE", leafDER), write("key.pem", "EC PRIVATE KEY", keyDER)
}

// startMembers starts three nodes whose embedded etcd are one cluster.
func startMembers(t *testing.T) []*node {
	t.Helper()
	ca, cert, key := peerFiles(t)
	nodes := make([]*node, 3)
	peers := make([]string, len(nodes))
	for i := range nodes {
		nodes[i] = newNode(t)
		peers[i] = fmt.Sprintf("hk%d: \"https://127.0.0.1:%d\"", i+1, reservePorts(t, 1))
	}
	for i, n := range nodes {
		n.edit("node: test\n", fmt.Sprintf("node: hk%d\n", i+1))
		n.edit(fmt.Sprintf("etcd: {listen: %q}", n.Etcd), fmt.Sprintf("etcd: {listen: %q, cluster: {peers: {%s}, tls: {ca: %q, cert: %q, key: %q}}}",
			n.Etcd, strings.Join(peers, ", "), ca, cert, key))
		n.spawn() // none is ready before most are up
	}
	for _, n := range nodes {
		n.waitReady()
	}
	return nodes
}

// TestThreeNodesOfOneCluster edits keys at one node and finds them at others,
// while one is away, and after one has lost its etcd's data.
func TestThreeNodesOfOneCluster(t *testing.T) {
	t.Parallel()
	nodes := startMembers(t)
	hk1, hk2, hk3 := nodes[0], nodes[1], nodes[2]
	serves := func(n *node, name string) {
		t.Helper()
		eventually(t, "the route "+name, func() error {
			if body := n.curl(n.url(name+".localhost", "/")); body != name {
				return fmt.Errorf("it answers %q", body)
			}
			return nil
		})
	}
	put := func(n *node, name string) {
		t.Helper()
		n.keyCommand(0, "route", "put", name, fmt.Sprintf(`{"host": "%s.localhost", "respond": {"body": %q}}`, name, name))
	}
	put(hk1, "one")
	for _, n := range nodes {
		serves(n, "one")
	}

	hk2.stop()
	put(hk3, "two")
	serves(hk1, "two")
	hk2.start()
	serves(hk2, "two")

	// Its etcd's data is gone: it serves what it had, and says what to do.
	hk2.stop()
	if err := os.RemoveAll(filepath.Join(hk2.dir, "data", "etcd")); err != nil {
		t.Fatal(err)
	}
	hk2.spawn()
	eventually(t, "the node says that the cluster knows it", func() error {
		_, body, err := hk2.adminGet("/readyz")
		if err == nil && !strings.Contains(body, "sluice etcd replace hk2") {
			err = fmt.Errorf("it says %s", body)
		}
		return err
	})
	serves(hk2, "two")
	hk1.keyCommand(1, "etcd", "replace", "hk9", "--yes")
	hk1.keyCommand(0, "etcd", "replace", "hk2")
	hk2.stop()
	if err := os.RemoveAll(filepath.Join(hk2.dir, "data", "etcd")); err != nil {
		t.Fatal(err)
	}
	hk2.edit("cluster: {", "cluster: {joining: true, ")
	hk2.start()
	put(hk2, "three")
	serves(hk1, "three")
	serves(hk3, "three")
	out, _ := hk1.keyCommand(0, "etcd", "members")
	if strings.Count(out, "hk2") != 1 || strings.Count(out, "\n") != 4 {
		t.Errorf("the members are\n%s", out)
	}
	hk1.keyCommand(0, "etcd", "backup", "etcd.snap")
	if info, err := os.Stat(filepath.Join(hk1.dir, "etcd.snap")); err != nil || info.Size() < 10_000 {
		t.Errorf("the backup is %v, error %v", info, err)
	}

	// One alone is no majority: it serves on, and edits have to wait.
	hk3.stop()
	hk2.stop()
	if out, err := hk1.tryEtcdctl("--command-timeout", "2s", "put", "/sluice/routes/four", `{"host": "four.localhost", "respond": {}}`); err == nil {
		t.Errorf("an edit without a majority was taken: %s", out)
	}
	serves(hk1, "three")
	hk3.start()
	put(hk3, "five")
	serves(hk1, "five")
	hk2.start()
}

// TestMemberIsRemoved takes a healthy member away, which takes a word: its node
// serves what it had, says so wherever one looks, and takes no second one along.
func TestMemberIsRemoved(t *testing.T) {
	t.Parallel()
	nodes := startMembers(t)
	hk1, hk2, hk3 := nodes[0], nodes[1], nodes[2]
	put := func(body string) {
		t.Helper()
		hk1.keyCommand(0, "route", "put", "a", fmt.Sprintf(`{"host": "a.localhost", "respond": {"body": %q}}`, body))
	}
	serves := func(n *node, body string) {
		t.Helper()
		eventually(t, body, func() error {
			if got := n.curl(n.url("a.localhost", "/")); got != body {
				return fmt.Errorf("it answers %q", got)
			}
			return nil
		})
	}
	put("one")
	serves(hk3, "one")
	if out, _ := hk1.keyCommand(0, "etcd", "members"); strings.Count(out, "follows") != 2 || strings.Count(out, "leads") != 1 {
		t.Errorf("the members are\n%s", out)
	}

	if _, errOut := hk1.keyCommand(2, "etcd", "replace", "hk3"); !strings.Contains(errOut, "--yes") {
		t.Errorf("asked to replace a healthy member it said %s", errOut)
	}
	hk1.keyCommand(0, "etcd", "replace", "hk3", "--yes")
	hk1.keyCommand(0, "etcd", "replace", "hk3") // as it is expected already
	if _, errOut := hk1.keyCommand(1, "etcd", "replace", "hk2", "--yes"); !strings.Contains(errOut, "2 of 3 members have to be up") {
		t.Errorf("asked to take the majority away it said %s", errOut)
	}
	eventually(t, "hk3 says that it was removed", func() error {
		_, body, err := hk3.adminGet("/readyz")
		if err == nil && !strings.Contains(body, "the cluster has removed this member") {
			err = fmt.Errorf("it says %s", body)
		}
		return err
	})
	for name, want := range map[string]string{"sluice_etcd_connected": "0", "sluice_etcd_embedded_up": "0", "sluice_etcd_member_removed": "1"} {
		eventually(t, name, func() error {
			if got, _ := hk3.metric(name); got != want {
				return fmt.Errorf("it is %q", got)
			}
			return nil
		})
	}
	put("two")
	serves(hk2, "two")
	serves(hk3, "one")
	if out, _ := hk1.keyCommand(0, "status"); !strings.Contains(out, "etcd expects a member that has not started yet") || strings.Contains(out, "hk3 ") {
		t.Errorf("the status is\n%s", out)
	}

	hk3.stop()
	if err := os.RemoveAll(filepath.Join(hk3.dir, "data", "etcd")); err != nil {
		t.Fatal(err)
	}
	hk3.edit("cluster: {", "cluster: {joining: true, ")
	hk3.start()
	serves(hk3, "two")

	// One that is down is told of, and so is that most are.
	hk3.stop()
	if out, _ := hk1.keyCommand(0, "etcd", "members"); !strings.Contains(out, "no answer") {
		t.Errorf("with hk3 down the members are\n%s", out)
	}
	if out, _ := hk1.keyCommand(0, "status"); !strings.Contains(out, "! hk3 is a member of etcd, and no such node is live") {
		t.Errorf("with hk3 down the status is\n%s", out)
	}
	hk2.stop()
	if out, errOut := hk1.keyCommand(1, "etcd", "members"); strings.Count(out, "no answer") != 2 || !strings.Contains(errOut, "no member leads") {
		t.Errorf("left alone it says\n%s%s", out, errOut)
	}
	if _, errOut := hk1.keyCommand(1, "map", "ls"); !strings.Contains(errOut, "none of its members leads") {
		t.Errorf("left alone it says %s", errOut)
	}
	serves(hk1, "two")
	hk2.start()
}

// TestMembersFoundByNames has three nodes find each other by SRV records, in a
// network where a DNS server is all that they know.
func TestMembersFoundByNames(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Fatal("making network namespaces takes root: run the tests as root")
	}
	h := newHost(t)
	h.ip("link set lo up\naddr add " + backendAddr(0) + "/32 dev lo")
	names := startNameServer(t, h)
	ca, cert, key := peerFiles(t, "hk1.x.test", "hk2.x.test", "hk3.x.test")
	nodes := make([]*node, 3)
	for i := range nodes {
		name := fmt.Sprintf("hk%d", i+1)
		peer := uint16(reservePorts(t, 1))
		names.set(name+".x.test", "127.0.0.1")
		names.mu.Lock()
		names.members = append(names.members, &dns.SRV{
			Hdr: dns.RR_Header{Rrtype: dns.TypeSRV, Class: dns.ClassINET, Ttl: 1}, Port: peer, Target: name + ".x.test.",
		})
		names.mu.Unlock()
		n := newNode(t, withHost(h, backendAddr(0)))
		n.edit("node: test\n", "node: "+name+"\n")
		n.edit(fmt.Sprintf("etcd: {listen: %q}", n.Etcd), fmt.Sprintf(
			"etcd: {listen: %q, cluster: {srv: x.test, url: \"https://%s.x.test:%d\", listen: \"127.0.0.1:%d\", tls: {ca: %q, cert: %q, key: %q}}}",
			n.Etcd, name, peer, peer, ca, cert, key))
		nodes[i] = n
	}
	for _, n := range nodes {
		n.spawn() // none is ready before most are up
	}
	for _, n := range nodes {
		n.waitReady()
	}
	nodes[0].etcdctl("put", "/sluice/routes/a", `{"host": "a.test", "respond": {}}`)
	for i, n := range nodes {
		verdict := fmt.Sprintf("/sluice/verdicts/hk%d/routes/a", i+1)
		eventually(t, "node "+verdict, func() error {
			if out := n.etcdctl("get", verdict); !strings.Contains(out, "applied@") {
				return fmt.Errorf("it is %q", out)
			}
			return nil
		})
	}
	if out := nodes[1].etcdctl("member", "list"); strings.Count(out, "started") != 3 || !strings.Contains(out, "hk3.x.test") {
		t.Errorf("the members are\n%s", out)
	}
	// One goes, and is found again.
	nodes[2].stop()
	nodes[0].etcdctl("put", "/sluice/routes/b", `{"host": "b.test", "respond": {}}`)
	nodes[2].start()
	eventually(t, "the node that was away has the newest route", func() error {
		if out := nodes[2].etcdctl("get", "/sluice/verdicts/hk3/routes/b"); !strings.Contains(out, "applied@") {
			return fmt.Errorf("it is %q", out)
		}
		return nil
	})
}
