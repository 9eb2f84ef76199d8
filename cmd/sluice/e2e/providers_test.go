package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/certs/certstest"
)

// Wildcards by way of Aliyun and Cloudflare, as the program speaks with them over
// HTTPS: with secrets from the environment and from a file, one refusing while
// the other is at work, and a token that no longer holds told of before a renewal.
func TestWildcardsByHTTPProviders(t *testing.T) {
	t.Parallel()
	names := certstest.NewDNS(t)
	names.AddZone("y.test.")
	ali, cf := certstest.NewAlidns(t), certstest.NewCloudflare(t)
	cf.Domain = "y.test"
	ali.PublishAt(names)
	cf.PublishAt(names)
	internet := certstest.NewInternet(t, map[string]certstest.API{"alidns.aliyuncs.com": ali, "api.cloudflare.com": cf})
	authority := certstest.NewACME(t, names.Addr, certstest.ACMEOptions{})
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(cf.Token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := startNode(t, withoutLocalCA(),
		withEnv("HTTPS_PROXY="+internet.Proxy, "SSL_CERT_FILE="+internet.RootsFile, "ALI_SECRET="+ali.KeySecret, "CF_TOKEN_FILE="+token),
		withYAML(fmt.Sprintf(`acme:
  directory: %q
  ca_file: %q
  resolvers: [%q]
dns:
  ali: {provider: alidns, access_key_id: %q, access_key_secret: "${ALI_SECRET}", zones: [x.test]}
  cf: {provider: cloudflare, api_token: "${CF_TOKEN}", zones: [y.test]}
`, authority.DirectoryURL, authority.RootsFile, names.Addr, ali.KeyID)))
	n.put("domains/*.x.test", `{"provider": "ali"}`)
	n.put("domains/*.y.test", `{"provider": "cf"}`)
	n.verdictHas("domains/*.x.test", "applied@", "obtained until ")
	n.verdictHas("domains/*.y.test", "applied@", "obtained until ")

	refused := certstest.Reply{Status: 403, Body: `{"RequestId":"1","Code":"Forbidden.RAM","Message":"User not authorized to operate on the specified resource."}`}
	for range 20 {
		ali.Next("AddDomainRecord", refused)
	}
	n.put("domains/b.x.test", `{"provider": "ali"}`)
	n.put("domains/b.y.test", `{"provider": "cf"}`)
	n.verdictHas("domains/b.x.test", "degraded: no_certificate: ", "dns provider ali (alidns): add TXT record _acme-challenge.b to zone x.test.: HTTP 403 Forbidden.RAM: User not authorized",
		"alidns:DescribeDomains")
	n.verdictHas("domains/b.y.test", "applied@", "obtained until ")
	ali.Forget()
	n.verdictHas("domains/b.x.test", "applied@", "obtained until ")

	for host, records := range map[string][]certstest.Record{"alidns": ali.Records(), "cloudflare": cf.Records()} {
		if len(records) > 0 {
			t.Errorf("%s still has %v", host, records)
		}
	}
	_, metrics, err := n.adminGet("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range map[string]string{"the log": n.output.String(), "etcd": n.etcdctl("get", "--prefix", "/sluice/"), "the metrics": metrics} {
		if strings.Contains(text, ali.KeySecret) || strings.Contains(text, cf.Token) || strings.Contains(text, "PRIVATE KEY") {
			t.Errorf("%s: there is a secret in it", where)
		}
	}

	// The token is withdrawn while the node is down.
	if code := n.stop(); code != 0 {
		t.Fatalf("exit code %d, want 0", code)
	}
	for range 20 {
		cf.Next("GET zones", certstest.Reply{Status: 401, Body: `{"success":false,"errors":[{"code":9109,"message":"Invalid access token"}]}`})
	}
	n.start()
	n.verdictHas("domains/*.y.test", "degraded: provider_unusable: certificate obtained until ", "HTTP 401 code 9109: Invalid access token")
	n.verdictHas("domains/*.x.test", "applied@", "obtained until ")
	if _, err := n.leaf("a.y.test", authority.Roots); err != nil {
		t.Errorf("its certificate is served no more: %v", err)
	}
}
