package dns

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// kind is a sort of provider, as the file that brings it describes it.
type kind struct {
	name   string // what `provider:` says
	fields []field
	build  func(Settings) (driver, error) // its errors name the field
}

// field is a setting that the entries of one kind take.
type field struct {
	name     string
	right    string // what would be right, for people
	optional bool
}

// kinds are all kinds by name. They enter themselves as the package is loaded,
// so that a new one is a file and no change to any other.
var kinds = map[string]kind{}

// register enters k. It is called for the value of a variable, before main.
func register(k kind) struct{} {
	if _, twice := kinds[k.name]; twice || k.name == "" {
		panic("dns: two kinds of providers are called " + k.name)
	}
	kinds[k.name] = k
	return struct{}{}
}

// Kinds returns the names of all kinds of providers and the settings that each
// takes, in the order in which their files have them.
func Kinds() map[string][]string {
	all := make(map[string][]string, len(kinds))
	for name, k := range kinds {
		all[name] = k.takes()
	}
	return all
}

func (k kind) takes() []string {
	names := make([]string, len(k.fields))
	for i, f := range k.fields {
		names[i] = f.name
	}
	return names
}

// kindOf returns the kind of an entry that has exactly the settings that it takes.
func kindOf(cfg Config) (kind, error) {
	k, ok := kinds[cfg.Provider]
	if !ok {
		known := strings.Join(slices.Sorted(maps.Keys(kinds)), ", ")
		if cfg.Provider == "" {
			return kind{}, fmt.Errorf("provider is missing: want one of %s", known)
		}
		return kind{}, fmt.Errorf("provider %q is unknown: want one of %s", cfg.Provider, known)
	}
	takes := k.takes()
	for _, name := range slices.Sorted(maps.Keys(cfg.Settings)) {
		if !slices.Contains(takes, name) {
			return kind{}, fmt.Errorf("(%s): %s has no meaning here: %s takes %s",
				k.name, name, k.name, strings.Join(slices.Concat(takes, []string{"zones", "nameservers"}), ", "))
		}
	}
	for _, f := range k.fields {
		if !f.optional && cfg.Settings[f.name] == "" {
			return kind{}, fmt.Errorf("(%s): %s is missing: want %s", k.name, f.name, f.right)
		}
	}
	return k, nil
}
