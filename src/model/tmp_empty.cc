// model
namespace fathom {}
