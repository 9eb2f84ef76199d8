package router_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/router"
)

// One value must not take gigabytes or minutes of every node that reads it.
func TestValuesAreBounded(t *testing.T) {
	const targets = `{"host":"a.test","backend":{"targets":[%s"10.0.0.1:80"]}}`
	rewrite := func(expr string) string {
		return fmt.Sprintf(`{"host":"a.test","backend":"10.0.0.1:80","rewrite":{"regex":%q,"to":"/x"}}`, expr)
	}
	origins := func(count int, expr string) string {
		return `{"host":"a.test","backend":"10.0.0.1:80","cors":{"origins":["https://a.test"` + strings.Repeat(fmt.Sprintf(`,%q`, "~"+expr), count) + `]}}`
	}
	for _, tc := range []struct{ name, value, wrong string }{
		{"many targets", fmt.Sprintf(targets, strings.Repeat(`"10.0.0.1:80",`, 1023)), ""},
		{"too many", fmt.Sprintf(targets, strings.Repeat(`"10.0.0.1:80",`, 1024)), "backend.targets: are 1025; at most 1024 are allowed"},
		{"too long", fmt.Sprintf(targets, strings.Repeat(" ", 256<<10)), "the value has"},
		{"a pattern of letters", rewrite(`^/([\pL\pN-]+)/(.*)$`), ""},
		{"a long pattern", rewrite(strings.Repeat("a", 1025)), "rewrite.regex: the pattern is 1025 characters long; at most 1024 are allowed"},
		{"many steps", rewrite(`(a?){900}(b?){900}(c?){900}`), "rewrite.regex: the pattern compiles to"},
		{"many classes", rewrite(strings.Repeat(`\PC`, 300)), "rewrite.regex: the pattern compiles to"},
		{"a class many times", rewrite(`\PC{300}`), "rewrite.regex: the pattern compiles to"},
		{"patterns of origins", origins(16, `https://[a-z]+\.a\.test`), ""},
		{"too many of them", origins(17, `https://[a-z]+\.a\.test`), "cors.origins[17]: is one regular expression too many"},
		{"a large one", origins(1, `(a?){900}(b?){900}(c?){900}`), "cors.origins[1]: the pattern compiles to"},
		{"long ones", origins(5, strings.Repeat("a", 1000)), "cors.origins[5]: the regular expressions have 5000 characters in all"},
		{"long ones of hosts", `{"host":["~` + strings.Repeat("a", 1000) + strings.Repeat(`","~`+strings.Repeat("b", 1000), 4) + `"],"respond":{}}`, "host: has regular expressions of 5005 characters in all"},
		{"one that ends what is around it", origins(1, `a)|(?:b`), "cors.origins[1]: \"a)|(?:b\" is not a regular expression"},
	} {
		_, err := router.ParseRoute("a", []byte(tc.value))
		if tc.wrong == "" && err != nil || tc.wrong != "" && (err == nil || !strings.HasPrefix(err.Error(), tc.wrong)) {
			t.Errorf("%s: error %v, want %q", tc.name, err, tc.wrong)
		}
	}
	long := []byte(`"10.0.0.1:80` + strings.Repeat(" ", router.MaxValue) + `"`)
	if _, err := router.ParseMapping(router.TCP, 1, long); err == nil || !strings.HasPrefix(err.Error(), "the value has") {
		t.Errorf("a long mapping: %v", err)
	}
	if _, err := router.ParseDomain("a.test", long); err == nil || !strings.HasPrefix(err.Error(), "the value has") {
		t.Errorf("a long domain: %v", err)
	}
}
