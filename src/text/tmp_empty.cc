// text
namespace fathom {}
