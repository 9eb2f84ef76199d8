package router

// Builder gathers mappings and routes and compiles them into tables. The cost
// of an edit follows the edit, not the table. A Builder belongs to one
// goroutine; the tables it returned stay valid and unchanged for ever. The zero
// value is empty and ready.
type Builder struct {
	table  Table
	routes map[string]*Route
	// The branches and pages made since the last Table call, which may still be
	// written to; all others are shared with tables in use.
	ownedBranches map[*portBranch]bool
	ownedPages    map[*portPage]bool

	clientAuths    map[string]*ClientAuth // by the names of domains
	domainsChanged bool                   // since the last Table call
}

// SetMapping adds m or replaces the mapping of its port.
func (b *Builder) SetMapping(m *Mapping) {
	if slot := b.slot(m.Proto, m.Port); *slot != m {
		if *slot == nil {
			b.table.counts.mappings++
		}
		b.countChecked(*slot, -1)
		b.countChecked(m, 1)
		*slot = m
	}
}

// Mapping returns the mapping of a port as of the last edit, or nil.
func (b *Builder) Mapping(p Proto, port int) *Mapping { return b.table.Mapping(p, port) }

// DeleteMapping takes the mapping of a port out. Deleting an absent one is not
// an error.
func (b *Builder) DeleteMapping(p Proto, port int) {
	if b.table.Mapping(p, port) == nil {
		return
	}
	slot := b.slot(p, port)
	b.countChecked(*slot, -1)
	*slot = nil
	b.table.counts.mappings--
	i, j, _ := portPath(port)
	branch := b.table.ports[p][i] // ours, since the slot is
	if *branch[j] == noPage {
		delete(b.ownedPages, branch[j])
		branch[j] = nil
	}
	if *branch == noBranch {
		delete(b.ownedBranches, branch)
		b.table.ports[p][i] = nil
	}
}

func (b *Builder) countChecked(m *Mapping, n int) {
	if m.isChecked() {
		b.table.counts.checkedMappings += n
	}
}

// slot returns where the mapping of a port is kept, in a page that no table
// shares.
func (b *Builder) slot(p Proto, port int) **Mapping {
	i, j, k := portPath(port)
	branch := own(&b.ownedBranches, &b.table.ports[p][i])
	return &own(&b.ownedPages, &branch[j])[k]
}

// own replaces *at by a copy, or by a new T where there is none, unless it is
// among those owned.
func own[T any](owned *map[*T]bool, at **T) *T {
	if *at != nil && (*owned)[*at] {
		return *at
	}
	mine := new(T)
	if *at != nil {
		*mine = **at
	}
	if *owned == nil {
		*owned = map[*T]bool{}
	}
	(*owned)[mine] = true
	*at = mine
	return mine
}

// SetRoute adds r or replaces the route of its name.
func (b *Builder) SetRoute(r *Route) {
	if b.routes[r.Name] == r {
		return
	}
	b.DeleteRoute(r.Name)
	if b.routes == nil {
		b.routes = map[string]*Route{}
	}
	if b.table.routes == nil {
		b.table.routes = &routeIndex{}
	}
	b.routes[r.Name] = r
	b.table.routes = b.table.routes.with(r)
	b.countRoute(r, 1)
}

// DeleteRoute takes the route called name out. Deleting an absent one is not an
// error.
func (b *Builder) DeleteRoute(name string) {
	r := b.routes[name]
	if r == nil {
		return
	}
	delete(b.routes, name)
	b.table.routes = b.table.routes.without(r)
	b.countRoute(r, -1)
}

func (b *Builder) countRoute(r *Route, n int) {
	b.table.counts.routes += n
	if r.ofConnection() {
		b.table.counts.connectionRoutes += n
	}
	if r.isChecked() {
		b.table.counts.checkedRoutes += n
	}
	if r.isNamed() {
		b.table.counts.namedRoutes += n
	}
}

// Table returns what was gathered so far as an immutable table as of revision
// rev.
func (b *Builder) Table(rev int64) *Table {
	b.indexClientAuths()
	t := b.table
	t.Rev = rev
	clear(b.ownedBranches)
	clear(b.ownedPages)
	return &t
}
